#include "channel_store.h"

#include "available_memory.h"
#include "buffers.h"
#include "channel_weights.h"
#include "ffnskip/errors.h"
#include "weight_rows.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

namespace ffnskip {
namespace {

constexpr uint64_t k_alignment = 64;

// What a tensor's memory holds here and there, whatever its order; 0 where that is not the host's to read.
uint64_t sample_memory(const ggml_tensor * weight) {
    const ggml_backend_buffer_type_t type   = ggml_backend_buffer_get_type(buffer_of(weight));
    const ggml_backend_dev_t         device = ggml_backend_buft_get_device(type);
    const bool   is_host   = ggml_backend_buft_is_host(type) ||  // of its own order, but the CPU's
                             (device != nullptr && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU);
    const size_t row_bytes = ggml_row_size(weight->type, weight->ne[0]);
    if (!is_host || ggml_backend_buft_get_alloc_size(type, weight) < ggml_nbytes(weight)) {
        return 0;
    }
    return sample_rows(weight->ne[1], row_bytes, [&](int64_t first, int64_t n, uint8_t * to) {
        std::memcpy(to, static_cast<const uint8_t *>(weight->data) + size_t(first) * row_bytes, size_t(n) * row_bytes);
    });
}

ChannelLayout layout_of(const ggml_tensor * weight) {
    if (ggml_n_dims(weight) > 2) {
        throw Unsupported(std::string(weight->name) + " can't be stored by channel: it is no matrix");
    }
    try {
        return ChannelLayout(weight->type, weight->ne[0], weight->ne[1]);
    } catch (const std::invalid_argument & error) {
        throw Unsupported(std::string(weight->name) + ": " + error.what());
    }
}

uint64_t aligned(int64_t bytes) {
    return (uint64_t(bytes) + k_alignment - 1) / k_alignment * k_alignment;
}

constexpr uint64_t k_mb = 1000000;

ChannelMemory take_memory(uint64_t bytes, size_t n_matrices, const ChannelStore::Wanted & wanted) {
    const uint64_t available = wanted.available_bytes ? *wanted.available_bytes : available_memory();
    if (bytes > available) {
        throw Unsupported("leaving out channels takes a second copy of " + std::to_string(n_matrices) +
                          " matrices: " + std::to_string((bytes + k_mb - 1) / k_mb) + " MB of memory, of which " +
                          std::to_string(available / k_mb) +
                          " MB can be had. Leave out channels of fewer matrices or of a smaller model, choose a policy "
                          "without channels, or write the copy into a file once, which needs no memory of its own: "
                          "ffnskip channels " +
                          (wanted.model_path.empty() ? "MODEL" : wanted.model_path));
    }
    try {
        return ChannelMemory(size_t(bytes));
    } catch (const std::runtime_error & error) {
        throw Unsupported(error.what());
    }
}

void tell(const std::function<bool(double)> & progress, double done) {
    if (progress && !progress(done)) {
        throw Interrupted("making weights by channel was stopped");
    }
}

}  // namespace

// A copy, and what it was made of.
struct ChannelStore::Copy {
    ChannelMatrix matrix;
    std::string   name;
    const void *  data;    // the weight's
    uint64_t      sample;  // of these
};

struct ChannelStore::Batch {
    std::unordered_map<const ggml_tensor *, Copy> copies;
    ChannelMemory                                 memory;
    std::unique_ptr<Batch>                        before;
};

std::shared_ptr<ChannelStore> ChannelStore::of(const llama_model * model) {
    static std::mutex                                                 mutex;
    static std::map<const llama_model *, std::weak_ptr<ChannelStore>> stores;

    const std::lock_guard<std::mutex> lock(mutex);
    for (auto it = stores.begin(); it != stores.end();) {
        it = it->second.expired() ? stores.erase(it) : std::next(it);
    }
    std::weak_ptr<ChannelStore> & known = stores[model];
    std::shared_ptr<ChannelStore> store = known.lock();
    if (store == nullptr) {
        store.reset(new ChannelStore);
        known = store;
    }
    return store;
}

ChannelStore::ChannelStore()  = default;
ChannelStore::~ChannelStore() = default;

void ChannelStore::add(const Wanted & wanted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_of_another_model(wanted)) {
        latest_ = nullptr;
        batches_.reset();
        bytes_ = 0;
    }
    std::vector<const ggml_tensor *> missing;
    for (const ggml_tensor * weight : wanted.weights) {
        if (find(weight) == nullptr && std::find(missing.begin(), missing.end(), weight) == missing.end()) {
            missing.push_back(weight);
        }
    }
    if (missing.empty()) {
        return;
    }
    WeightRows                 rows(wanted.model_path, wanted.vectors);
    std::vector<ChannelLayout> layouts;
    std::vector<ChannelSource> sources;
    uint64_t                   bytes = 0;
    for (const ggml_tensor * weight : missing) {
        layouts.push_back(layout_of(weight));
        sources.push_back(rows.of(weight));
        bytes += aligned(layouts.back().bytes());
    }
    auto      batch = std::make_unique<Batch>(Batch{ {}, take_memory(bytes, missing.size(), wanted), nullptr });
    uint8_t * at    = batch->memory.data();
    for (size_t i = 0; i < missing.size(); ++i) {
        tell(wanted.progress, double(at - batch->memory.data()) / double(bytes));
        const ggml_tensor * weight = missing[i];
        build_channels(layouts[i], sources[i], wanted.n_threads, at);
        batch->copies.emplace(weight, Copy{ { layouts[i], at }, weight->name, weight->data, sample_memory(weight) });
        at += aligned(layouts[i].bytes());
    }
    tell(wanted.progress, 1);

    batch->before = std::move(batches_);
    batches_      = std::move(batch);
    fingerprint_  = wanted.fingerprint;
    bytes_ += bytes;
    latest_.store(batches_.get(), std::memory_order_release);
}

// Somebody may have kept the store of a model that is gone, and the model that asks now may lie where that one did, its
// tensors too. Then nobody reads the copies any more.
bool ChannelStore::is_of_another_model(const Wanted & wanted) const {
    std::unordered_map<std::string, std::pair<const ggml_tensor *, const Copy *>> known;
    for (const Batch * batch = latest_; batch != nullptr; batch = batch->before.get()) {
        for (const auto & [weight, copy] : batch->copies) {
            known.emplace(copy.name, std::make_pair(weight, &copy));
        }
    }
    const auto differs = [&](const ggml_tensor * weight) {
        const auto found = known.find(weight->name);
        if (found == known.end()) {
            return false;
        }
        const auto [tensor, copy]    = found->second;
        const ChannelLayout & layout = copy->matrix.layout;
        return tensor != weight || copy->data != weight->data || layout.format->type != weight->type ||
               layout.n_in != weight->ne[0] || layout.n_out != weight->ne[1] || copy->sample != sample_memory(weight);
    };
    return wanted.fingerprint != fingerprint_ || std::any_of(wanted.weights.begin(), wanted.weights.end(), differs);
}

const ChannelStore::Copy * ChannelStore::find(const ggml_tensor * weight) const {
    for (const Batch * batch = latest_.load(std::memory_order_acquire); batch != nullptr; batch = batch->before.get()) {
        const auto found = batch->copies.find(weight);
        if (found != batch->copies.end()) {
            return &found->second;
        }
    }
    return nullptr;
}

const ChannelMatrix & ChannelStore::matrix(const ggml_tensor * weight) const {
    const Copy * found = find(weight);
    if (found == nullptr) {
        throw std::logic_error(std::string(weight->name) + " was not added to the weights by channel");
    }
    return found->matrix;
}

}  // namespace ffnskip
