#include "terminal.h"

#include "errors.h"
#include "text.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace app {
namespace {

constexpr char k_plain[] = "\x1b[0m";

volatile std::sig_atomic_t g_answering   = 0;
volatile std::sig_atomic_t g_interrupted = 0;
volatile std::sig_atomic_t g_coloured    = 0;  // the terminal is in a colour of ours

void on_interrupt(int) {
    if (g_answering != 0 && g_interrupted == 0) {
        g_interrupted = 1;
        return;
    }
    if (g_coloured != 0 && write(STDOUT_FILENO, k_plain, sizeof(k_plain) - 1) < 0) {
        // nothing can be done about it
    }
    _exit(128 + SIGINT);
}

bool wants_colours(Choice color) {
    if (color != Choice::automatic) {
        return color == Choice::on;
    }
    const char * no_color = std::getenv("NO_COLOR");  // no-color.org: set and not empty
    return isatty(STDOUT_FILENO) != 0 && (no_color == nullptr || *no_color == '\0');
}

}  // namespace

void open_standard_streams() {
    for (const int stream : { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO }) {
        if (fcntl(stream, F_GETFD) < 0 && open("/dev/null", O_RDWR) != stream) {
            _exit(2);
        }
    }
}

bool stdin_is_terminal() {
    return isatty(STDIN_FILENO) != 0;
}

Output::Output(Choice color) : colours_(wants_colours(color)) {}

Output::~Output() {
    if (g_coloured != 0) {
        std::fputs(k_plain, stdout);
        std::fflush(stdout);
        g_coloured = 0;
    }
}

void Output::set(Colour colour) {
    if (!colours_) {
        return;
    }
    switch (colour) {
        case Colour::plain:  put(k_plain); break;
        case Colour::prompt: put("\x1b[33m"); break;
        case Colour::user:   put("\x1b[1m\x1b[32m"); break;
    }
    g_coloured = colour != Colour::plain;
}

void Output::write(std::string_view text) {
    held_back_ += text;
    const size_t whole = complete_utf8(held_back_);
    put(std::string_view(held_back_).substr(0, whole));
    held_back_.erase(0, whole);
}

void Output::end_text() {
    put(held_back_ + '\n');
    held_back_.clear();
}

void Output::put(std::string_view bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size() && std::fflush(stdout) == 0) {
        return;
    }
    const int error = errno;
    g_coloured      = 0;
    if (error == EPIPE) {
        throw ReaderGone();
    }
    throw std::runtime_error(std::string("standard output can't be written: ") + std::strerror(error));
}

Answering::Answering() {
    g_interrupted = 0;
    g_answering   = 1;
}

Answering::~Answering() {
    g_answering = 0;
}

bool interrupted() {
    return g_interrupted != 0;
}

void watch_signals() {
    struct sigaction action = {};
    action.sa_handler       = on_interrupt;
    action.sa_flags         = SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    std::signal(SIGPIPE, SIG_IGN);  // a write that fails says so itself
}

}  // namespace app
