// Standard output, the colours of a terminal, and Ctrl-C.
#pragma once

#include "arguments.h"

#include <string>
#include <string_view>

namespace app {

// A closed standard stream becomes /dev/null, or the next file opened would take its place.
void open_standard_streams();

bool stdin_is_terminal();

enum class Colour { plain, prompt, user };

// Text on standard output, whole characters at a time.
class Output {
public:
    explicit Output(Choice color);
    ~Output();

    void set(Colour colour);
    // Throws ReaderGone where nobody reads any more, std::runtime_error where it can't be written.
    void write(std::string_view text);
    // What is held back of an unfinished character, and a newline.
    void end_text();

private:
    void put(std::string_view bytes);

    bool        colours_;
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
