// Text as bytes: UTF-8, escape sequences, files.
#pragma once

#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

namespace app {

// Offset of the first byte that is not part of a whole UTF-8 character, if there is one.
std::optional<size_t> invalid_utf8(std::string_view text);

// Length of `text` without an unfinished character at its end.
size_t complete_utf8(std::string_view text);

// `text` with every byte that is not UTF-8 replaced by U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

// What a backslash and `name` stand for: n, r, t, quotation marks and the backslash.
std::optional<char> escaped(char name);

// Those and \xNN as llama-cli reads them; anything else stays as it is.
std::string unescape(std::string_view text);

// Throws BadInput, beginning with `what`, unless `path` is a file that can be read.
void require_file(const std::string & what, const std::string & path);

// The text of a file, without a byte order mark; throws BadInput, also where it can't be read to its end.
std::string read_text_file(const std::string & what, const std::string & path);
// The same of a stream that is open.
std::string read_text(const std::string & what, std::FILE * file);

// Throw BadInput, beginning with `what`: the first byte that is not UTF-8, or NUL, which libllama takes for the end of
// some texts. Bytes are counted from `first_byte`.
void require_utf8(const std::string & what, const std::string & text, size_t first_byte = 0);
void require_no_nul(const std::string & what, const std::string & text);

// `text` without the mark that some editors begin UTF-8 files with.
std::string without_byte_order_mark(std::string text);

}  // namespace app
