#include "mapped_file.h"

#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#define FFNSKIP_MMAP
#endif

namespace ffnskip {

#ifdef FFNSKIP_MMAP

MappedFile::MappedFile(const std::string & path) {
    const int   descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat file;
    void *      mapped = MAP_FAILED;
    if (descriptor >= 0 && fstat(descriptor, &file) == 0) {
        mapped = mmap(nullptr, size_t(file.st_size), PROT_READ, MAP_SHARED, descriptor, 0);
    }
    const int error = errno;
    if (descriptor >= 0) {
        close(descriptor);  // the mapping stays
    }
    if (mapped == MAP_FAILED) {
        throw std::invalid_argument(std::string("can't be mapped: ") + std::strerror(error));
    }
    data_ = static_cast<const uint8_t *>(mapped);
    size_ = uint64_t(file.st_size);
#ifdef MADV_HUGEPAGE
    // Where the file system can: what is not in the cache yet is read 2 MB at a time, and lies in huge pages.
    madvise(mapped, size_t(size_), MADV_HUGEPAGE);
#endif
}

MappedFile::~MappedFile() {
    munmap(const_cast<uint8_t *>(data_), size_t(size_));
}

#else

MappedFile::MappedFile(const std::string &) : data_(nullptr), size_(0) {
    throw std::invalid_argument("can't be mapped on this system");
}

MappedFile::~MappedFile() = default;

#endif

}  // namespace ffnskip
