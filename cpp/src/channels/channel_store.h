// The weights by channel of the models of this process: made once for a model, whoever uses it.
#pragma once

#include "channel_layout.h"
#include "progress.h"

#include <ggml.h>
#include <llama.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace ffnskip {

// A matrix, or one of the same shape for each of a layer's experts.
struct ChannelMatrix {
    ChannelLayout   layout;
    const uint8_t * data;  // layout.bytes(n_experts) of them, aligned to 64
    int64_t         n_experts = 1;

    const uint8_t * of(int64_t expert) const { return data + expert * layout.stride(); }
};

// All may be called from several threads at once.
class ChannelStore {
public:
    // That of a model; a new one where there is none. It lives as long as somebody has it: the contexts of the model.
    static std::shared_ptr<ChannelStore> of(const llama_model * model);

    ~ChannelStore();

    struct Wanted {
        std::vector<const ggml_tensor *> weights;      // of the model: matrices, or experts'
        std::vector<const ggml_tensor *> vectors;      // float32 vectors of its blocks, which its file is recognised by
        std::string                      fingerprint;  // Controller::fingerprint()
        std::string                      model_path;   // the first file's; "" where not known: then memory has to do
        int                              n_threads = 1;
        Progress                         progress;
        std::optional<uint64_t>          available_bytes;  // of memory; without it the system is asked
    };

    // Finds copies of those weights that have none in model.channels.gguf beside the model's file, or makes them: of all, or of none where it throws. Throws Unsupported where there is
    // not enough memory, a type can't be stored by channel or the weights can't be read, std::runtime_error where reading
    // failed on the way, and Interrupted where `progress` stopped it.
    void add(const Wanted & wanted);

    // Of a weight that was added; takes no lock. It stays where it is as long as its model.
    const ChannelMatrix & matrix(const ggml_tensor * weight) const;

    uint64_t bytes() const { return bytes_; }  // of memory taken
    uint64_t mapped_bytes() const { return mapped_bytes_; }

    // Why files of copies that were found are not used, one line for each.
    std::vector<std::string> notes() const;

private:
    struct Copy;
    struct Batch;
    struct Missing;

    ChannelStore();
    const Copy * find(const ggml_tensor * weight) const;
    bool         is_of_another_model(const Wanted & wanted) const;
    void         map(const Wanted & wanted, std::vector<Missing> & missing, Batch & batch);
    void         build(const Wanted & wanted, const std::vector<Missing> & missing, Batch & batch);
    void         note(const std::string & text);

    std::mutex                 mutex_;  // held by add() alone
    std::string                fingerprint_;
    std::unique_ptr<Batch>     batches_;            // what each add() has made, the last one first
    std::atomic<const Batch *> latest_{ nullptr };  // the same, for those who don't lock
    std::atomic<uint64_t>      bytes_{ 0 }, mapped_bytes_{ 0 };
    mutable std::mutex         notes_mutex_;
    std::vector<std::string>   notes_;
};

}  // namespace ffnskip
