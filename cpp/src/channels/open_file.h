// A file that several threads read from at once, wherever in it they want.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace ffnskip {

class OpenFile {
public:
    // Throws std::runtime_error, with the path and the reason.
    explicit OpenFile(const std::string & path);
    ~OpenFile();
    OpenFile(OpenFile && other) noexcept;

    // Throws std::runtime_error where the file ends before, or can't be read.
    void read(uint64_t offset, size_t size, void * to) const;

private:
    struct Handle;
    std::string             path_;
    std::unique_ptr<Handle> handle_;
};

}  // namespace ffnskip
