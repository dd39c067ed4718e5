// The program that this library was loaded into: whether it uses libllama, and of which version.
#pragma once

#include "hooks.h"

#include <atomic>

#define FFNSKIP_INTERPOSED extern "C" __attribute__((visibility("default")))

namespace ffnskip {

extern const Hooks *     g_hooks;    // null where the program runs dense
extern bool              g_linked;   // the program, or a library it is linked with, is linked with libllama
extern std::atomic<bool> g_active;   // some context skips
extern std::atomic<bool> g_used;     // some context was made through here
extern std::atomic<bool> g_reached;  // some model was loaded through here

[[gnu::format(printf, 1, 2)]] void say(const char * format, ...);

// Whether the program is not to run dense.
bool strict();

// With what the program has written so far, since no destructor will run any more.
[[noreturn]] void stop();

// llama.cpp's own function: the next one in the order of loading, or that of a libllama loaded later and kept to itself;
// null where there is none.
void * find(const char * name);

// Before the first model or context: a library that the program opened later, a plug-in or an extension module, may be what
// is linked with libllama.
void begin_late();

// The program asks libllama for its functions by name (Python's ctypes, say), and so goes past this library: says so, once.
void say_past();

}  // namespace ffnskip
