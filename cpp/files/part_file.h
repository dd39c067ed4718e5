// A file is written beside the one that it replaces, and gets its name when it is whole.
#pragma once

#include <filesystem>

namespace ffnskip {

// Where a link leads, even if nothing is there yet.
std::filesystem::path behind_links(std::filesystem::path path);

// What this process writes before it gets the name of `target`: .NAME.PID.part, in the same folder. What processes that were
// killed have left there of such is removed.
std::filesystem::path begin_part(const std::filesystem::path & target);

// The part gets the name of `target`, and the permissions of what is replaced. False, with errno, where it can't.
bool end_part(const std::filesystem::path & part, const std::filesystem::path & target);

}  // namespace ffnskip
