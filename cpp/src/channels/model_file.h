// A model's file, or all of its files where it is split: which tensors there are, and their bytes.
#pragma once

#include "open_file.h"

#include <ggml.h>

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace ffnskip {

class ModelFile {
public:
    struct Tensor {
        ggml_type                          type;
        std::array<int64_t, GGML_MAX_DIMS> ne;
        size_t                             file;    // number among the model's files
        uint64_t                           offset;  // in it
    };

    // `path`: of the model's file, or of the first of several. Throws Unsupported, with the path of the file that can't
    // be used and why.
    explicit ModelFile(const std::string & path);

    // nullptr where there is none of that name.
    const Tensor * find(const std::string & name) const;

    // That of the same name, of a model in memory. Throws Unsupported where type or shape is another.
    const Tensor & require(const ggml_tensor * tensor) const;

    // And where its bytes are others: not for weights that may lie in memory in another order.
    void require_same(const ggml_tensor * tensor) const;

    // Several threads may read at once. Throws std::runtime_error where the file can't be read.
    void read(const Tensor & tensor, uint64_t offset, size_t size, void * to) const;

private:
    int add(const std::string & path);

    std::string                             path_;
    std::vector<OpenFile>                   files_;
    std::unordered_map<std::string, Tensor> tensors_;
};

}  // namespace ffnskip
