// Text as bytes: UTF-8, escape sequences, files.
#pragma once

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

// \n, \r, \t, \', \", \\ and \xNN as llama-cli reads them; anything else stays as it is.
std::string unescape(std::string_view text);

// Throws BadInput, beginning with `what`, unless `path` is a file that can be read.
void require_file(const std::string & what, const std::string & path);

// The contents of the file; throws BadInput as require_file does.
std::string read_file(const std::string & what, const std::string & path);

}  // namespace app
