#include "input.h"

#include "errors.h"
#include "terminal.h"
#include "text.h"

#include <cstdio>
#include <iostream>
#include <utility>

namespace app {
namespace {

constexpr size_t k_terminal_line = 4096;  // Linux: a terminal keeps no more of a line, its end included

// Editors and echo end a text with a newline that is no part of it.
std::string without_last_newline(std::string text) {
    for (const char end : { '\n', '\r' }) {  // some end lines with both
        if (!text.empty() && text.back() == end) {
            text.pop_back();
        }
    }
    return text;
}

}  // namespace

std::optional<std::string> given_prompt(const Arguments & args) {
    if (args.prompt) {
        require_utf8("--prompt", *args.prompt);
        return args.prompt;
    }
    if (args.prompt_file) {
        const std::string text = read_text_file("--file", *args.prompt_file);
        require_utf8("--file '" + *args.prompt_file + "'", text);
        return without_last_newline(text);
    }
    return std::nullopt;
}

std::string piped_prompt() {
    const std::string text = read_text("standard input", stdin);
    require_utf8("standard input", text);
    return without_last_newline(text);
}

std::optional<std::string> Messages::next() {
    for (std::string message;;) {
        const std::optional<std::string> line = next_line();
        if (!line || (*line == "/exit" && message.empty())) {
            return message.empty() ? std::nullopt : std::optional<std::string>(message);
        }
        if (!line->empty() && line->back() == '\\') {
            message += line->substr(0, line->size() - 1) + "\n";
        } else if (message += * line; !message.empty()) {
            return message;
        }
    }
}

std::optional<std::string> Messages::next_line() {
    if (stdin_is_terminal()) {
        output_.write("> ");
    }
    std::string line;
    if (!std::getline(std::cin, line)) {
        return std::nullopt;
    }
    const size_t first_byte = n_read_;
    n_read_ += line.size() + 1;
    if (stdin_is_terminal() && line.size() + 1 >= k_terminal_line) {
        throw BadInput("the line has reached the terminal's limit of " + std::to_string(k_terminal_line) +
                       " bytes, the rest is lost; end lines with \\ sooner, or pipe the text in");
    }
    require_utf8("standard input", line, first_byte);
    return without_last_newline(first_byte == 0 ? without_byte_order_mark(std::move(line)) : std::move(line));
}

}  // namespace app
