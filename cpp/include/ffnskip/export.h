// What the library shows of itself: the public headers, in C and in C++, and nothing else.
#pragma once

#define FFNSKIP_API __attribute__((visibility("default")))
