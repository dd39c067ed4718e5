#include "model_file.h"

#include "ffnskip/errors.h"
#include "gguf_header.h"

#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace ffnskip {
namespace {

// How many files the model is in. The key is 16-bit; what is not split has none.
int number_of_files(const gguf_context * keys) {
    const int64_t id = gguf_find_key(keys, "split.count");
    return id >= 0 && gguf_get_kv_type(keys, id) == GGUF_TYPE_UINT16 ? std::max<int>(1, gguf_get_val_u16(keys, id)) : 1;
}

// `number` from 0 on.
std::string path_of_file(const std::string & first, int number, int n_files) {
    std::string prefix(first.size() + 1, '\0');
    if (llama_split_prefix(prefix.data(), prefix.size(), first.c_str(), 0, n_files) == 0) {
        char ending[64];
        std::snprintf(ending, sizeof(ending), "-00001-of-%05d.gguf", n_files);
        throw Unsupported(first + ": is the first of " + std::to_string(n_files) +
                          " files, and the others are not found by a name that does not end in " + ending);
    }
    std::string path(first.size() + 64, '\0');
    path.resize(size_t(llama_split_path(path.data(), path.size(), prefix.c_str(), number, n_files)));
    return path;
}

std::string described(ggml_type type, const int64_t * ne) {
    std::string text = std::string(ggml_type_name(type)) + " " + std::to_string(ne[0]);
    for (int i = 1; i < GGML_MAX_DIMS; ++i) {
        text += ne[i] == 1 ? "" : " x " + std::to_string(ne[i]);
    }
    return text;
}

}  // namespace

ModelFile::ModelFile(const std::string & path) : path_(path) {
    const int n_files = add(path);
    for (int number = 1; number < n_files; ++number) {
        add(path_of_file(path, number, n_files));
    }
}

// How many files the model is in, by what this one says.
int ModelFile::add(const std::string & path) {
    try {
        const GgufHeader header = read_gguf_header(path);
        const uint64_t   begin  = gguf_get_data_offset(header.keys.get());
        for (int64_t i = 0; i < gguf_get_n_tensors(header.keys.get()); ++i) {
            const char *        name  = gguf_get_tensor_name(header.keys.get(), i);
            const ggml_tensor * shape = ggml_get_tensor(header.shapes.get(), name);
            Tensor tensor{ shape->type, {}, files_.size(), begin + gguf_get_tensor_offset(header.keys.get(), i) };
            std::copy_n(shape->ne, GGML_MAX_DIMS, tensor.ne.begin());
            tensors_.emplace(name, tensor);
        }
        files_.emplace_back(path);
        return number_of_files(header.keys.get());
    } catch (const std::invalid_argument & error) {
        throw Unsupported(path + ": " + error.what());
    }
}

const ModelFile::Tensor * ModelFile::find(const std::string & name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
}

const ModelFile::Tensor & ModelFile::require(const ggml_tensor * tensor) const {
    const Tensor * found = find(tensor->name);
    if (found == nullptr) {
        throw Unsupported(path_ + ": is not the file of this model: it has no " + tensor->name);
    }
    if (found->type != tensor->type || !std::equal(found->ne.begin(), found->ne.end(), tensor->ne)) {
        throw Unsupported(path_ + ": is not the file of this model: " + tensor->name + " is " +
                          described(found->type, found->ne.data()) + " there, not " +
                          described(tensor->type, tensor->ne));
    }
    return *found;
}

void ModelFile::require_same(const ggml_tensor * tensor) const {
    const Tensor &       found = require(tensor);
    std::vector<uint8_t> there(ggml_nbytes(tensor)), here(there.size());
    read(found, 0, there.size(), there.data());
    ggml_backend_tensor_get(tensor, here.data(), 0, here.size());
    if (there != here) {
        throw Unsupported(path_ + ": is not the file of this model: " + tensor->name + " has other values there");
    }
}

void ModelFile::read(const Tensor & tensor, uint64_t offset, size_t size, void * to) const {
    files_[tensor.file].read(tensor.offset + offset, size, to);
}

}  // namespace ffnskip
