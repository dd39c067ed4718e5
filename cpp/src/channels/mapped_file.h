// A file's bytes, where the system keeps them for all processes.
#pragma once

#include <cstdint>
#include <string>

namespace ffnskip {

class MappedFile {
public:
    // Throws std::invalid_argument, the reason alone.
    explicit MappedFile(const std::string & path);
    ~MappedFile();
    MappedFile(const MappedFile &)             = delete;
    MappedFile & operator=(const MappedFile &) = delete;

    const uint8_t * data() const { return data_; }
    uint64_t        size() const { return size_; }

private:
    const uint8_t * data_;
    uint64_t        size_;
};

}  // namespace ffnskip
