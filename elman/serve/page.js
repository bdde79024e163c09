// The server writes; this asks it for more, and shows what comes.
const text = one("text"), go = one("write"), heat = one("temperature"), note = one("said"), key = one("key");
const MOST = 50000, AT_ONCE = 2000; // characters on the page; symbols of a request

const say = (words, wrong = false) => {
  note.textContent = words;
  note.classList.toggle("wrong", wrong);
};

// --- the units -----------------------------------------------------------------------------------------------------------

let parts = [], paint = null;
const show = (units) => {
  const found = Object.entries(units);
  if (!paint) {
    parts = found.map(([name, values]) => ({name, values: new Float32Array(values.length)}));
    one("none").hidden = true;
    paint = strips(parts);
  }
  found.forEach(([, values], k) => parts[k].values.set(values.map((value) => value / 100)));
  paint();
};

// --- asking --------------------------------------------------------------------------------------------------------------

// At most so many symbols that go on from the text; why they ended.
const ask = async (count, signal) => {
  const headers = {"Content-Type": "application/json"};
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  const answer = await fetch("v1/completions", {method: "POST", headers, signal, body: JSON.stringify({
    model: about.model, prompt: text.value, max_tokens: count, temperature: Number(heat.value), stream: true, units: true,
  })});
  if (!answer.ok) {
    if (answer.status === 401) {
      one("locked").hidden = false;
      key.focus();
    }
    throw new Error((await answer.json()).error.message);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "", ended = null;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return ended;
    const events = (left + value).split("\n\n");
    left = events.pop();
    let more = "";
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") continue;
      const said = JSON.parse(data);
      if (said.error) throw new Error(said.error.message);
      more += said.choices[0].text;
      ended = said.choices[0].finish_reason ?? ended;
      if (said.choices[0].units) show(said.choices[0].units);
    }
    if (more && !signal.aborted) {
      text.value += more;
      text.scrollTop = text.scrollHeight;
      written += more.length;
    }
  }
};

// --- writing -------------------------------------------------------------------------------------------------------------

let writing = null, written = 0;
const stop = () => {
  if (writing) writing.abort();
  writing = null;
  go.textContent = "Write on";
  go.setAttribute("aria-pressed", "false");
};
// One symbol in each picture, which goes on from the state that the server has kept; or as many as come.
const begin = async () => {
  const own = (writing = new AbortController()), begun = performance.now();
  written = 0;
  go.textContent = "Stop";
  go.setAttribute("aria-pressed", "true");
  say("It writes.");
  try {
    while (writing === own && text.value.length < MOST) {
      await ask(one("fast").checked ? AT_ONCE : 1, own.signal);
      if (!one("fast").checked) await new Promise(requestAnimationFrame);
    }
    if (writing === own) stop();
  } catch (error) {
    if (writing === own) {
      stop();
      return say(error.message, true);
    }
  }
  const seconds = (performance.now() - begun) / 1000;
  if (!writing) say(`${number.format(written)} characters, ${number.format(Math.round(written / seconds))} a second.`);
};
go.addEventListener("click", () => (writing ? stop() : begin()));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && writing) stop();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !writing) begin();
  else return;
  event.preventDefault();
});
one("clear").addEventListener("click", () => {
  stop();
  text.value = "";
  say("");
  text.focus();
});
text.addEventListener("input", stop);
heat.addEventListener("input", () => (one("heat").textContent = Number(heat.value).toFixed(2)));
