#include "channel_memory.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define FFNSKIP_MMAP
#endif

namespace ffnskip {
namespace {

constexpr size_t k_huge_page = size_t(2) << 20;

size_t whole_pages(size_t bytes) {
    return (bytes + k_huge_page - 1) / k_huge_page * k_huge_page;
}

}  // namespace

ChannelMemory::ChannelMemory(size_t bytes) : data_(nullptr), bytes_(whole_pages(bytes)) {
#ifdef FFNSKIP_MMAP
    // One page more than needed, to begin at a huge page's boundary; what is too much goes back.
    void * mapped = mmap(nullptr, bytes_ + k_huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped != MAP_FAILED) {
        uint8_t *    begin  = static_cast<uint8_t *>(mapped);
        const size_t before = (k_huge_page - reinterpret_cast<uintptr_t>(begin) % k_huge_page) % k_huge_page;
        if (before > 0) {
            munmap(begin, before);
        }
        munmap(begin + before + bytes_, k_huge_page - before);
        data_ = begin + before;
#ifdef MADV_HUGEPAGE
        madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
    }
#else
    data_ = static_cast<uint8_t *>(::operator new(bytes_, std::align_val_t(64), std::nothrow));
    if (data_) {
        std::memset(data_, 0, bytes_);
    }
#endif
    if (!data_) {
        throw std::runtime_error("no memory for weights by channel: " + std::to_string(bytes_ >> 20) + " MiB");
    }
}

ChannelMemory::~ChannelMemory() {
    if (data_) {
#ifdef FFNSKIP_MMAP
        munmap(data_, bytes_);
#else
        ::operator delete(data_, std::align_val_t(64));
#endif
    }
}

ChannelMemory::ChannelMemory(ChannelMemory && other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

ChannelMemory & ChannelMemory::operator=(ChannelMemory && other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

}  // namespace ffnskip
