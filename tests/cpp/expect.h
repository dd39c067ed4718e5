// Test programs name each expectation; what fails is printed, and result() tells main's exit status.
#pragma once

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>

inline int g_failures = 0;

inline void expect(bool condition, const std::string & what) {
    if (!condition) {
        std::printf("FAILED: %s\n", what.c_str());
        ++g_failures;
    }
}

inline void expect_refused(const std::function<void()> & action, const std::string & named) {
    try {
        action();
    } catch (const std::invalid_argument & error) {
        expect(std::string(error.what()).find(named) != std::string::npos,
               "message names " + named + ": " + error.what());
        return;
    }
    expect(false, "refused: " + named);
}

inline int result() {
    std::printf(g_failures == 0 ? "all passed\n" : "%d failed\n", g_failures);
    return g_failures == 0 ? 0 : 1;
}
