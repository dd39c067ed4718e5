#include "text.h"

#include "errors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

namespace app {
namespace {

bool is_continuation(char byte) {
    return (byte & 0xC0) == 0x80;
}

// Bytes of the character that begins with `lead`; 0 where none does.
size_t character_length(unsigned char lead) {
    return lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
}

// Bytes of the character at the beginning of `text`; 0 if it is none, or an unfinished one.
size_t valid_character(std::string_view text) {
    const size_t length = character_length(static_cast<unsigned char>(text[0]));
    if (length == 0 || length > text.size() ||
        !std::all_of(text.begin() + 1, text.begin() + long(length), is_continuation)) {
        return 0;
    }
    // Shorter forms of the same character, surrogates and what lies above U+10FFFF show in two bytes (RFC 3629).
    const unsigned two = static_cast<unsigned char>(text[0]) << 8 | static_cast<unsigned char>(text[length > 1]);
    const bool     bad = (two >= 0xE080 && two < 0xE0A0) || (two >= 0xEDA0 && two < 0xEDC0) ||
                         (two >= 0xF080 && two < 0xF090) || (two >= 0xF490 && two < 0xF4C0);
    return bad ? 0 : length;
}

struct Close {
    void operator()(std::FILE * file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

File open_file(const std::string & what, const std::string & path) {
    struct stat status;
    const int   found = stat(path.c_str(), &status);
    if (found == 0 && S_ISDIR(status.st_mode)) {
        throw BadInput(what + " '" + path + "': it is a directory, not a file");
    }
    File file(found == 0 ? std::fopen(path.c_str(), "rb") : nullptr);
    if (file == nullptr) {
        throw BadInput(what + " '" + path + "': " + std::strerror(errno));
    }
    return file;
}

}  // namespace

std::optional<size_t> invalid_utf8(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        const size_t length = valid_character(text.substr(at));
        if (length == 0) {
            return at;
        }
        at += length;
    }
    return std::nullopt;
}

size_t complete_utf8(std::string_view text) {
    for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
        const char byte = text[text.size() - back];
        if (!is_continuation(byte)) {  // the byte that begins the last character
            return character_length(static_cast<unsigned char>(byte)) > back ? text.size() - back : text.size();
        }
    }
    return text.size();
}

std::string replace_invalid_utf8(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const size_t length = valid_character(text);
        out += length == 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(0, length);
        text.remove_prefix(std::max<size_t>(1, length));
    }
    return out;
}

std::optional<char> escaped(char name) {
    constexpr std::string_view k_names  = "nrt'\"\\";
    constexpr std::string_view k_values = "\n\r\t'\"\\";
    const size_t               at       = k_names.find(name);
    return at == std::string_view::npos ? std::nullopt : std::optional<char>(k_values[at]);
}

std::string unescape(std::string_view text) {
    const auto is_hex = [&](size_t at) {
        return at < text.size() && std::isxdigit(static_cast<unsigned char>(text[at]));
    };
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\' || i + 1 == text.size()) {
            out += text[i];
        } else if (const std::optional<char> known = escaped(text[i + 1])) {
            out += *known;
            ++i;
        } else if (text[i + 1] == 'x' && is_hex(i + 2) && is_hex(i + 3)) {
            out += char(std::strtol(std::string(text.substr(i + 2, 2)).c_str(), nullptr, 16));
            i += 3;
        } else {
            out += text.substr(i++, 2);
        }
    }
    return out;
}

void require_file(const std::string & what, const std::string & path) {
    open_file(what, path);
}

std::string read_text_file(const std::string & what, const std::string & path) {
    const File file = open_file(what, path);
    return read_text(what + " '" + path + "'", file.get());
}

std::string read_text(const std::string & what, std::FILE * file) {
    std::string text;
    char        block[1 << 16];
    for (size_t n; (n = std::fread(block, 1, sizeof(block), file)) > 0;) {
        text.append(block, n);
    }
    if (std::ferror(file) != 0) {
        throw BadInput(what + ": it can't be read: " + std::strerror(errno));
    }
    return without_byte_order_mark(std::move(text));
}

void require_utf8(const std::string & what, const std::string & text, size_t first_byte) {
    if (const std::optional<size_t> at = invalid_utf8(text)) {
        char byte[8];
        std::snprintf(byte, sizeof(byte), "0x%02x", static_cast<unsigned char>(text[*at]));
        throw BadInput(what + ": invalid UTF-8 at byte " + std::to_string(first_byte + *at) + " (" + byte + ")");
    }
}

void require_no_nul(const std::string & what, const std::string & text) {
    const size_t at = text.find('\0');
    if (at != std::string::npos) {
        throw BadInput(what + ": byte " + std::to_string(at) + " is NUL, which can't be passed on here");
    }
}

std::string without_byte_order_mark(std::string text) {
    return text.compare(0, 3, "\xEF\xBB\xBF") == 0 ? text.substr(3) : std::move(text);
}

}  // namespace app
