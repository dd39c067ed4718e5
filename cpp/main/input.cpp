#include "input.h"

#include "errors.h"
#include "text.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>

namespace app {
namespace {

void require_utf8(const std::string & what, const std::string & text, size_t first_byte = 0) {
    if (const std::optional<size_t> at = invalid_utf8(text)) {
        char byte[8];
        std::snprintf(byte, sizeof(byte), "0x%02x", static_cast<unsigned char>(text[*at]));
        throw BadInput(what + ": invalid UTF-8 at byte " + std::to_string(first_byte + *at) + " (" + byte + ")");
    }
}

// Editors and echo end a text with a newline that is no part of it.
std::string without_last_newline(std::string text) {
    if (!text.empty() && text.back() == '\n') {
        text.pop_back();
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
        const std::string text = read_file("--file", *args.prompt_file);
        require_utf8("--file '" + *args.prompt_file + "'", text);
        return without_last_newline(text);
    }
    return std::nullopt;
}

std::string piped_prompt() {
    std::string text;
    char        block[1 << 16];
    for (size_t n; (n = std::fread(block, 1, sizeof(block), stdin)) > 0;) {
        text.append(block, n);
    }
    if (std::ferror(stdin) != 0) {
        throw BadInput(std::string("standard input can't be read: ") + std::strerror(errno));
    }
    require_utf8("standard input", text);
    return without_last_newline(text);
}

std::optional<std::string> Messages::next_line() {
    std::string line;
    if (!std::getline(std::cin, line)) {
        return std::nullopt;
    }
    require_utf8("standard input", line, n_read_);
    n_read_ += line.size() + 1;
    return line;
}

}  // namespace app
