#include "terminal.h"

#include "errors.h"
#include "text.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace app {
namespace {

volatile std::sig_atomic_t g_answering   = 0;
volatile std::sig_atomic_t g_interrupted = 0;

void on_interrupt(int) {
    if (g_answering == 0 || g_interrupted != 0) {
        _exit(128 + SIGINT);
    }
    g_interrupted = 1;
}

void put(std::string_view bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size() && std::fflush(stdout) == 0) {
        return;
    }
    if (errno == EPIPE) {
        throw ReaderGone();
    }
    throw std::runtime_error(std::string("standard output can't be written: ") + std::strerror(errno));
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
