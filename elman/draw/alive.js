"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const plays = JSON.parse(one("plays").textContent);
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const slider = one("tau"), now = one("now"), log = one("log"), play = one("play");
  const invitation = now ? now.textContent : "";
  let place = 0, timer = null;

  const figure = () => all("figure").find((f) => !f.hidden);
  const tau = () => figure().dataset.tau;
  const events = () => plays[tau()] || [];

  // Every copy of a parameter, wherever it is drawn.
  const light = (name, on) => {
    for (const g of all("g[data-weights]"))
      if (g.dataset.weights.split(" ").includes(name)) g.classList.toggle("lit", on);
  };
  const pressed = () => all(".weight").filter((b) => b.getAttribute("aria-pressed") === "true");
  const relight = () => {
    all("g.lit").forEach((g) => g.classList.remove("lit"));
    pressed().forEach((b) => light(b.dataset.weight, true));
  };
  for (const button of all(".weight")) {
    const name = button.dataset.weight;
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => light(name, true));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, relight);
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      relight();
    });
  }
  for (const g of all("g[data-weights]")) {
    g.addEventListener("pointerenter", () => g.dataset.weights.split(" ").forEach((name) => light(name, true)));
    g.addEventListener("pointerleave", relight);
  }

  const stop = () => {
    clearInterval(timer);
    timer = null;
    if (play) play.textContent = "Play";
  };
  const begin = () => {
    stop();
    place = 0;
    all("g.now, g.seen").forEach((g) => g.classList.remove("now", "seen"));
    relight();
    if (log) log.replaceChildren();
    if (now) now.textContent = events().length ? invitation : "Unfold it, and numbers can go through it.";
  };
  const step = () => {
    const event = events()[place];
    if (!event) return stop();
    place += 1;
    all("g.now").forEach((g) => g.classList.replace("now", "seen"));
    relight();
    if (event.weight) light(event.weight, true);
    const node = event.node && all("g[data-node]", figure()).find((g) => g.dataset.node === event.node);
    if (node) {
      node.classList.add("now");
      // Into sight, where the picture is wider than the screen; the page stays where it is.
      const frame = figure().parentElement, view = frame.getBoundingClientRect(), at = node.getBoundingClientRect();
      if (at.left < view.left || at.right > view.right)
        frame.scrollLeft += (at.left + at.right - view.left - view.right) / 2;
    }
    now.textContent = event.text;
    const line = document.createElement("li");
    line.textContent = event.text;
    if (event.back) line.className = "back";
    log.append(line);
    log.scrollTop = log.scrollHeight;
    if (place === events().length) stop();
  };
  if (play) {
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (!events().length) { slider.value = "3"; slider.dispatchEvent(new Event("input")); }
      if (place === events().length) begin();
      if (still) { while (place < events().length) step(); return; }
      play.textContent = "Pause";
      step();
      timer = setInterval(step, 450);
    });
    one("next").addEventListener("click", () => { stop(); step(); });
    one("back").addEventListener("click", begin);
  }
  // Layers of one kind in a row: a frame with their number, which opens and closes.
  const repeat = (g) => (g.dataset.group || g.dataset.key).split(" ")[1];
  const toggle = (g) => {
    const open = new Set(tau() ? tau().split(" ") : []);
    const which = repeat(g);
    if (!open.delete(which)) open.add(which);
    const figures = all("figure");
    const wanted = figures.find((f) => f.dataset.tau === [...open].sort((a, b) => a - b).join(" "))
      || (open.has(which) ? figures.at(-1) : figures[0]);
    figures.forEach((f) => { f.hidden = f !== wanted; });
    relight();
    repeats(wanted).find((other) => repeat(other) === which)?.focus();
  };
  const repeats = (within) => all("[data-group^='repeat '], [data-key^='repeat ']", within);
  for (const f of all("figure"))
    for (const g of repeats(f)) {
      const open = f.dataset.tau.split(" ").includes(repeat(g));
      g.setAttribute("role", "button");
      g.setAttribute("tabindex", "0");
      g.setAttribute("aria-expanded", String(open));
      g.setAttribute("aria-label", `${g.querySelector("text").textContent}, ${open ? "close" : "open"}`);
      g.addEventListener("click", () => toggle(g));
      g.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        toggle(g);
      });
    }
  if (slider)
    slider.addEventListener("input", () => {
      for (const f of all("figure")) f.hidden = f.dataset.tau !== slider.value;
      one("steps").textContent = slider.value;
      begin();
    });
})();
