// Standard output, and Ctrl-C.
#pragma once

#include <string>
#include <string_view>

namespace app {

// A closed standard stream becomes /dev/null, or the next file opened would take its place.
void open_standard_streams();

bool stdin_is_terminal();

// Text on standard output, whole characters at a time.
class Output {
public:
    // Throws ReaderGone where nobody reads any more, std::runtime_error where it can't be written.
    void write(std::string_view text);
    // What is held back of an unfinished character, and a newline.
    void end_text();

private:
    std::string held_back_;
};

// While one lives, Ctrl-C asks for the answer to end, and the second leaves at once; otherwise the first leaves.
class Answering {
public:
    Answering();
    ~Answering();
};

// Ctrl-C was pressed since the newest Answering began.
bool interrupted();

// Must be called once, before the first Answering.
void watch_signals();

}  // namespace app
