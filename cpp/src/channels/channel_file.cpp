#include "channel_file.h"

#include "channel_memory.h"
#include "gguf_header.h"
#include "weight_rows.h"

#include <ggml.h>
#include <gguf.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace ffnskip {
namespace {

constexpr uint32_t k_alignment = 4096;

constexpr char k_layout[]  = "ffnskip.channels.layout";
constexpr char k_model[]   = "ffnskip.channels.model";
constexpr char k_types[]   = "ffnskip.channels.types";
constexpr char k_inputs[]  = "ffnskip.channels.inputs";
constexpr char k_outputs[] = "ffnskip.channels.outputs";
constexpr char k_experts[] = "ffnskip.channels.experts";
constexpr char k_samples[] = "ffnskip.channels.samples";

// Of a tensor: each begins with a page.
uint64_t aligned(uint64_t bytes) {
    return (bytes + k_alignment - 1) / k_alignment * k_alignment;
}

[[noreturn]] void refuse(const std::string & why) {
    throw std::invalid_argument(why);
}

// ---- reading ----

int64_t find_key(const gguf_context * keys, const char * key, gguf_type type) {
    const int64_t id = gguf_find_key(keys, key);
    if (id < 0 || gguf_get_kv_type(keys, id) != type) {
        refuse("is no file of weights by channel: it has no " + std::string(key));
    }
    return id;
}

// An array with an entry for each tensor.
int64_t find_array(const gguf_context * keys, const char * key, gguf_type type) {
    const int64_t id = find_key(keys, key, GGUF_TYPE_ARRAY);
    if (gguf_get_arr_type(keys, id) != type || int64_t(gguf_get_arr_n(keys, id)) != gguf_get_n_tensors(keys)) {
        refuse("is damaged: " + std::string(key) + " does not say something of each tensor");
    }
    return id;
}

const uint64_t * numbers(const gguf_context * keys, const char * key) {
    return static_cast<const uint64_t *>(gguf_get_arr_data(keys, find_array(keys, key, GGUF_TYPE_UINT64)));
}

ggml_type type_of(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char * known = ggml_type_name(ggml_type(type));
        if (known != nullptr && name == known) {
            return ggml_type(type);
        }
    }
    refuse("is damaged: there is no type " + name);
}

}  // namespace

ChannelFile::ChannelFile(const std::string & path, const std::string & fingerprint) {
    const GgufHeader     header  = read_gguf_header(path);
    const gguf_context * keys    = header.keys.get();
    const uint32_t       version = gguf_get_val_u32(keys, find_key(keys, k_layout, GGUF_TYPE_UINT32));
    if (version != k_channel_layout_version) {
        refuse("is of version " + std::to_string(version) + ", not " + std::to_string(k_channel_layout_version) +
               "; write it anew");
    }
    const std::string model = gguf_get_val_str(keys, find_key(keys, k_model, GGUF_TYPE_STRING));
    if (model != fingerprint) {
        refuse("is of another model, " + model + "; this one is " + fingerprint);
    }
    const int64_t    types   = find_array(keys, k_types, GGUF_TYPE_STRING);
    const uint64_t * inputs  = numbers(keys, k_inputs);
    const uint64_t * outputs = numbers(keys, k_outputs);
    const uint64_t * experts = numbers(keys, k_experts);
    const uint64_t * samples = numbers(keys, k_samples);

    const MappedFile & file = bytes_.emplace(path);
    if (file.size() != header.file_bytes) {
        refuse("is being replaced");
    }
    const uint8_t * data = file.data() + gguf_get_data_offset(keys);
    for (int64_t i = 0; i < gguf_get_n_tensors(keys); ++i) {
        const std::string   name = gguf_get_tensor_name(keys, i);
        const ggml_type     type = type_of(gguf_get_arr_str(keys, types, size_t(i)));
        const ChannelLayout layout(type, int64_t(inputs[i]), int64_t(outputs[i]));
        const int64_t       n_experts = int64_t(experts[i]);
        const uint8_t *     matrix    = data + gguf_get_tensor_offset(keys, i);
        const uint64_t      bytes     = ggml_nbytes(ggml_get_tensor(header.shapes.get(), name.c_str()));
        if (n_experts < 1 || n_experts > int64_t(bytes) || bytes != aligned(uint64_t(layout.bytes(n_experts))) ||
            reinterpret_cast<uintptr_t>(matrix) % 64 != 0) {
            refuse("is damaged: the size or the place of " + name + " is not right");
        }
        matrices_.emplace(name, Matrix{ layout, n_experts, samples[i], matrix });
    }
}

const ChannelFile::Matrix * ChannelFile::find(const std::string & name) const {
    const auto found = matrices_.find(name);
    return found == matrices_.end() ? nullptr : &found->second;
}

// ---- writing ----

namespace {

class Output {
public:
    explicit Output(const std::string & path) : path_(path), file_(std::fopen(path.c_str(), "wb")) {
        require(file_ != nullptr);
    }
    ~Output() {
        if (file_ != nullptr) {
            std::fclose(file_);
        }
    }
    Output(const Output &)             = delete;
    Output & operator=(const Output &) = delete;

    void write(const void * data, size_t size) { require(std::fwrite(data, 1, size, file_) == size); }

    void close() { require(std::fclose(std::exchange(file_, nullptr)) == 0); }

private:
    void require(bool done) const {
        if (!done) {
            throw std::system_error(errno, std::generic_category(), path_);
        }
    }

    std::string path_;
    std::FILE * file_;
};

uint64_t sample_of(const ChannelFilePart & part) {
    return sample_rows(part.layout.n_out * part.n_experts, ggml_row_size(part.layout.format->type, part.layout.n_in),
                       part.source);
}

// All of the file that comes before the matrices.
std::vector<uint8_t> header_of(const std::string & fingerprint, const std::vector<ChannelFilePart> & parts) {
    const std::unique_ptr<gguf_context, FreeGguf> keys(gguf_init_empty());
    const size_t                                  tensor_bytes = ggml_tensor_overhead() * (parts.size() + 1);
    const std::unique_ptr<ggml_context, FreeGguf> tensors(ggml_init({ tensor_bytes, nullptr, true }));
    std::vector<const char *>                     types;
    std::vector<uint64_t>                         inputs, outputs, experts, samples;
    for (const ChannelFilePart & part : parts) {
        types.push_back(ggml_type_name(part.layout.format->type));
        inputs.push_back(uint64_t(part.layout.n_in));
        outputs.push_back(uint64_t(part.layout.n_out));
        experts.push_back(uint64_t(part.n_experts));
        samples.push_back(sample_of(part));
    }
    gguf_set_val_str(keys.get(), "general.architecture", "ffnskip-channels");
    gguf_set_val_u32(keys.get(), "general.alignment", k_alignment);
    gguf_set_val_u32(keys.get(), k_layout, k_channel_layout_version);
    gguf_set_val_str(keys.get(), k_model, fingerprint.c_str());
    gguf_set_arr_str(keys.get(), k_types, types.data(), types.size());
    gguf_set_arr_data(keys.get(), k_inputs, GGUF_TYPE_UINT64, inputs.data(), inputs.size());
    gguf_set_arr_data(keys.get(), k_outputs, GGUF_TYPE_UINT64, outputs.data(), outputs.size());
    gguf_set_arr_data(keys.get(), k_experts, GGUF_TYPE_UINT64, experts.data(), experts.size());
    gguf_set_arr_data(keys.get(), k_samples, GGUF_TYPE_UINT64, samples.data(), samples.size());
    for (const ChannelFilePart & part : parts) {
        ggml_tensor * tensor = ggml_new_tensor_1d(tensors.get(), GGML_TYPE_I8, int64_t(aligned(part.bytes())));
        ggml_set_name(tensor, part.name.c_str());
        gguf_add_tensor(keys.get(), tensor);
    }
    // ggml writes as if the alignment were the usual one; what it makes of the tensors' places is the same.
    std::vector<uint8_t> header(aligned(gguf_get_meta_size(keys.get())));
    gguf_get_meta_data(keys.get(), header.data());
    return header;
}

}  // namespace

void write_channel_file(const std::string & path, const std::string & fingerprint,
                        const std::vector<ChannelFilePart> & parts, int n_threads, const Progress & progress) {
    uint64_t all = 0, done = 0;
    for (const ChannelFilePart & part : parts) {
        all += aligned(part.bytes());
    }
    Output                     output(path);
    const std::vector<uint8_t> header = header_of(fingerprint, parts);
    output.write(header.data(), header.size());
    for (const ChannelFilePart & part : parts) {
        tell(progress, double(done) / double(all));
        const uint64_t      bytes = aligned(part.bytes());
        const ChannelMemory memory(bytes);
        build_experts(part.layout, part.n_experts, part.source, n_threads, memory.data());
        output.write(memory.data(), bytes);
        done += bytes;
    }
    output.close();
    tell(progress, 1);
}

}  // namespace ffnskip
