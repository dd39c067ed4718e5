#include "open_file.h"

#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#define FFNSKIP_PREAD
#else
#include <fstream>
#include <mutex>
#endif

namespace ffnskip {

#ifdef FFNSKIP_PREAD

struct OpenFile::Handle {
    explicit Handle(int descriptor) : descriptor(descriptor) {}
    ~Handle() { close(descriptor); }

    int descriptor;
};

OpenFile::OpenFile(const std::string & path) : path_(path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        throw std::runtime_error(path + ": can't be read: " + std::strerror(errno));
    }
    handle_ = std::make_unique<Handle>(descriptor);
}

void OpenFile::read(uint64_t offset, size_t size, void * to) const {
    constexpr size_t k_most = size_t(1) << 30;  // systems read less than 2 GiB at a time
    for (auto * at = static_cast<uint8_t *>(to); size > 0;) {
        const ssize_t n = pread(handle_->descriptor, at, std::min(size, k_most), off_t(offset));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            throw std::runtime_error(path_ +
                                     ": can't be read: " + (n == 0 ? "it has become shorter" : std::strerror(errno)));
        }
        at += n;
        offset += uint64_t(n);
        size -= size_t(n);
    }
}

#else

struct OpenFile::Handle {
    std::ifstream file;
    std::mutex    mutex;  // the file has one position
};

OpenFile::OpenFile(const std::string & path) : path_(path), handle_(std::make_unique<Handle>()) {
    handle_->file.open(path, std::ios::binary);
    if (!handle_->file) {
        throw std::runtime_error(path + ": can't be read");
    }
}

void OpenFile::read(uint64_t offset, size_t size, void * to) const {
    const std::lock_guard<std::mutex> lock(handle_->mutex);
    handle_->file.clear();
    if (!handle_->file.seekg(std::streamoff(offset)) ||
        !handle_->file.read(static_cast<char *>(to), std::streamsize(size))) {
        throw std::runtime_error(path_ + ": can't be read");
    }
}

#endif

OpenFile::~OpenFile()                          = default;
OpenFile::OpenFile(OpenFile && other) noexcept = default;

}  // namespace ffnskip
