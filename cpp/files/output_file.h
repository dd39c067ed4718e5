// Files that a program writes for its user: whole or not at all, by way of one beside it. A device, a pipe and what
// standard output or error goes to are written into.
#pragma once

#include <string>

namespace ffnskip {

// Whether `descriptor`, STDOUT_FILENO say, is open on the file at `path`.
bool is_open_on(int descriptor, const std::string & path);

// Why nothing can be written at `path`, or nothing.
std::string why_not_writable(const std::string & path);

// Writes `text`, where links lead; returns why it can't be, or nothing. What processes that were killed have left beside the
// file is removed.
std::string write_file(const std::string & path, const std::string & text);

}  // namespace ffnskip
