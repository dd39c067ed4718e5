#include "part_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <string>
#include <system_error>

namespace ffnskip {
namespace {

namespace fs = std::filesystem;

void remove_left_behind(const fs::path & target) {
    const std::string before = "." + target.filename().string() + ".";
    const fs::path    folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
    std::error_code   error;
    for (const fs::directory_entry & entry : fs::directory_iterator(folder, error)) {
        const std::string name = entry.path().filename().string();
        int               pid  = 0;
        int               end  = 0;
        if (name.compare(0, before.size(), before) == 0 &&
            std::sscanf(name.c_str() + before.size(), "%d.part%n", &pid, &end) == 1 && pid > 0 &&
            before.size() + size_t(end) == name.size() && kill(pid, 0) != 0 && errno == ESRCH) {
            fs::remove(entry.path(), error);
        }
    }
}

}  // namespace

fs::path behind_links(fs::path path) {
    constexpr int   k_most = 40;  // as the system follows
    std::error_code error;
    for (int i = 0; i < k_most && fs::is_symlink(path, error); ++i) {
        path = path.parent_path() / fs::read_symlink(path, error);
    }
    return path;
}

fs::path begin_part(const fs::path & target) {
    remove_left_behind(target);
    return target.parent_path() / ("." + target.filename().string() + "." + std::to_string(getpid()) + ".part");
}

bool end_part(const fs::path & part, const fs::path & target) {
    struct stat old;
    if (stat(target.c_str(), &old) == 0) {
        chmod(part.c_str(), old.st_mode & 07777);
    }
    return std::rename(part.c_str(), target.c_str()) == 0;
}

}  // namespace ffnskip
