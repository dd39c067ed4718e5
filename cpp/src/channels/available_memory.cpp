#include "available_memory.h"

#ifdef __APPLE__
#include <mach/mach.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

namespace ffnskip {
namespace {

#ifdef __APPLE__

uint64_t of_machine(const std::string &) {
    vm_statistics64_data_t pages;
    mach_msg_type_number_t size = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&pages), &size) !=
        KERN_SUCCESS) {
        return k_memory_not_known;
    }
    return (uint64_t(pages.free_count) + pages.external_page_count + pages.purgeable_count) *
           uint64_t(sysconf(_SC_PAGESIZE));
}

#else

// The number behind a word at a line's beginning.
std::optional<uint64_t> number_after(const std::string & path, const std::string & word) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string        first;
        uint64_t           number = 0;
        if (words >> first && first == word && words >> number) {
            return number;
        }
    }
    return std::nullopt;
}

std::optional<uint64_t> number_in(const std::string & path) {
    std::ifstream file(path);
    uint64_t      number = 0;
    return file >> number ? std::optional<uint64_t>(number) : std::nullopt;  // "max": no limit
}

uint64_t of_machine(const std::string & root) {
    const auto kib = number_after(root + "/proc/meminfo", "MemAvailable:");
    return kib ? *kib * 1024 : k_memory_not_known;
}

// What the two versions of control groups call the same.
struct Names {
    const char *folder, *limit, *usage;
    std::string cache;  // a prefix of words in memory.stat
};

// The least that a group, and those that it is in, leave. In a container the group's path may be that outside of it:
// then its folder is not there, and that of a group above it is.
uint64_t of_groups(const std::string & root, const Names & names, std::string path) {
    uint64_t least = k_memory_not_known;
    for (bool more = true; more;) {
        const std::string folder = root + names.folder + path;
        const auto        limit = number_in(folder + names.limit), usage = number_in(folder + names.usage);
        if (limit && usage) {
            const std::string stat  = folder + "/memory.stat";
            const uint64_t    cache = number_after(stat, names.cache + "inactive_file").value_or(0) +
                                      number_after(stat, names.cache + "active_file").value_or(0);
            const uint64_t    taken = *usage - std::min(*usage, cache);
            least                   = std::min(least, *limit - std::min(*limit, taken));
        }
        more                = !path.empty();
        const size_t parent = path.rfind('/');
        path.resize(parent == std::string::npos ? 0 : parent);
    }
    return least;
}

uint64_t of_groups(const std::string & root) {
    static const Names k_v1 = { "/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_" };
    static const Names k_v2 = { "/sys/fs/cgroup", "/memory.max", "/memory.current", "" };
    uint64_t           least = k_memory_not_known;
    std::ifstream      groups(root + "/proc/self/cgroup");
    // A line is NUMBER:CONTROLLERS:PATH, with no controllers in version 2.
    for (std::string line; std::getline(groups, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) {
            continue;
        }
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const std::string path        = line.substr(second + 1);
        const std::string inner       = path == "/" ? "" : path;
        if (controllers == ",,") {
            least = std::min(least, of_groups(root, k_v2, inner));
        } else if (controllers.find(",memory,") != std::string::npos) {
            least = std::min(least, of_groups(root, k_v1, inner));
        }
    }
    return least;
}

#endif

}  // namespace

uint64_t available_memory(const std::string & root) {
#ifdef __APPLE__
    return of_machine(root);
#else
    return std::min(of_machine(root), of_groups(root));
#endif
}

}  // namespace ffnskip
