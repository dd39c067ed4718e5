#include "output_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace ffnskip {
namespace {

namespace fs = std::filesystem;

bool is_written_into(const std::string & path) {
    struct stat file;
    return stat(path.c_str(), &file) == 0 &&
           (!S_ISREG(file.st_mode) || is_open_on(STDOUT_FILENO, path) || is_open_on(STDERR_FILENO, path));
}

// Where a link leads, even if nothing is there yet.
fs::path behind_links(fs::path path) {
    constexpr int   k_most = 40;  // as the system follows
    std::error_code error;
    for (int i = 0; i < k_most && fs::is_symlink(path, error); ++i) {
        path = path.parent_path() / fs::read_symlink(path, error);
    }
    return path;
}

// What this process writes before it gets the name of `target`, in the same folder: .NAME.PID.part
fs::path part_of(const fs::path & target) {
    return target.parent_path() / ("." + target.filename().string() + "." + std::to_string(getpid()) + ".part");
}

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

std::string write(const fs::path & path, const std::string & text, const char * mode) {
    std::FILE * file = std::fopen(path.c_str(), mode);
    if (file == nullptr) {
        return std::strerror(errno);
    }
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed  = std::fclose(file) == 0;
    return written && closed ? "" : std::strerror(errno);
}

}  // namespace

bool is_open_on(int descriptor, const std::string & path) {
    struct stat file, open;
    return stat(path.c_str(), &file) == 0 && fstat(descriptor, &open) == 0 && open.st_dev == file.st_dev &&
           open.st_ino == file.st_ino;
}

std::string why_not_writable(const std::string & path) {
    if (access(path.c_str(), F_OK) == 0 && access(path.c_str(), W_OK) != 0) {
        return std::strerror(errno);
    }
    if (is_written_into(path)) {
        return "";
    }
    const fs::path    part = part_of(behind_links(path));
    const std::string why  = write(part, "", "w");
    std::remove(part.c_str());
    return why;
}

std::string write_file(const std::string & path, const std::string & text) {
    if (is_written_into(path)) {
        std::fflush(nullptr);  // what the program said comes first
        return write(path, text, "a");
    }
    const fs::path target = behind_links(path);
    const fs::path part   = part_of(target);
    remove_left_behind(target);
    std::string why = write(part, text, "w");
    struct stat old;
    if (stat(target.c_str(), &old) == 0) {
        chmod(part.c_str(), old.st_mode & 07777);
    }
    if (why.empty() && std::rename(part.c_str(), target.c_str()) != 0) {
        why = std::strerror(errno);
    }
    if (!why.empty()) {
        std::remove(part.c_str());
    }
    return why;
}

}  // namespace ffnskip
