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

bool between(unsigned char byte, int low, int high) {
    return byte >= low && byte <= high;
}

// Bytes of the character that begins with `lead`; 0 where none does.
size_t character_length(unsigned char lead) {
    if (lead < 0x80) {
        return 1;
    }
    if (between(lead, 0xC2, 0xDF)) {
        return 2;
    }
    if (between(lead, 0xE0, 0xEF)) {
        return 3;
    }
    return between(lead, 0xF0, 0xF4) ? 4 : 0;
}

// Shorter forms of the same character, surrogates and what lies above U+10FFFF show in the second byte (RFC 3629).
bool is_second_byte(unsigned char lead, unsigned char byte) {
    switch (lead) {
        case 0xE0: return between(byte, 0xA0, 0xBF);
        case 0xED: return between(byte, 0x80, 0x9F);
        case 0xF0: return between(byte, 0x90, 0xBF);
        case 0xF4: return between(byte, 0x80, 0x8F);
        default:   return between(byte, 0x80, 0xBF);
    }
}

// Bytes of the character at the beginning of `text`; 0 if it is none, or an unfinished one.
size_t valid_character(std::string_view text) {
    const unsigned char lead   = static_cast<unsigned char>(text[0]);
    const size_t        length = character_length(lead);
    if (length == 0 || length > text.size()) {
        return 0;
    }
    for (size_t i = 1; i < length; ++i) {
        const unsigned char byte = static_cast<unsigned char>(text[i]);
        if (i == 1 ? !is_second_byte(lead, byte) : !between(byte, 0x80, 0xBF)) {
            return 0;
        }
    }
    return length;
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
        const unsigned char byte = static_cast<unsigned char>(text[text.size() - back]);
        if (!between(byte, 0x80, 0xBF)) {  // the byte that begins the last character
            return character_length(byte) > back ? text.size() - back : text.size();
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

std::string unescape(std::string_view text) {
    constexpr std::string_view k_names  = "nrt'\"\\";
    constexpr std::string_view k_values = "\n\r\t'\"\\";

    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\' || i + 1 == text.size()) {
            out += text[i];
            continue;
        }
        const char   name  = text[++i];
        const size_t known = k_names.find(name);
        if (known != std::string_view::npos) {
            out += k_values[known];
        } else if (name == 'x' && i + 2 < text.size() && std::isxdigit(static_cast<unsigned char>(text[i + 1])) &&
                   std::isxdigit(static_cast<unsigned char>(text[i + 2]))) {
            out += char(std::strtol(std::string(text.substr(i + 1, 2)).c_str(), nullptr, 16));
            i += 2;
        } else {
            out += '\\';
            out += name;
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
