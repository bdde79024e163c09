// For a wheel that is built here and runs elsewhere (CMakeLists.txt, ELMAN_PORTABLE): of the C library's functions that have a
// new version for other reasons than what they do, the first one is asked for, which every glibc since has. The linker sends
// all calls of them through here (--wrap), also those of the C++ library, which the module brings along.
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>

#if defined(__x86_64__)
#define ELMAN_FIRST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define ELMAN_FIRST "GLIBC_2.17"
#else
#error "which version of glibc was this machine's first?"
#endif

#define ELMAN_OLD(name) __asm__(".symver old_" #name "," #name "@" ELMAN_FIRST);
ELMAN_OLD(pow)     // 2.29: another errno, which nobody here reads
ELMAN_OLD(dlopen)  // 2.34: moved from libdl and libpthread to libc, as all that follow
ELMAN_OLD(dlsym)
ELMAN_OLD(pthread_create)
ELMAN_OLD(pthread_once)
ELMAN_OLD(__pthread_key_create)

extern "C" {
double old_pow(double, double);
void* old_dlopen(const char*, int);
void* old_dlsym(void*, const char*);
int old_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int old_pthread_once(pthread_once_t*, void (*)());
int old___pthread_key_create(pthread_key_t*, void (*)(void*));

double __wrap_pow(double x, double y) { return old_pow(x, y); }
void* __wrap_dlopen(const char* file, int mode) { return old_dlopen(file, mode); }
void* __wrap_dlsym(void* handle, const char* name) { return old_dlsym(handle, name); }
int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* with, void* (*start)(void*), void* argument) {
    return old_pthread_create(thread, with, start, argument);
}
int __wrap_pthread_once(pthread_once_t* once, void (*start)()) { return old_pthread_once(once, start); }
int __wrap___pthread_key_create(pthread_key_t* key, void (*end)(void*)) { return old___pthread_key_create(key, end); }

// 2.32: the C++ library counts references without atomic operations where this is not 0. Nobody sets this one.
char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;
}
