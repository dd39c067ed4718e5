#include "channel_store.h"

#include "available_memory.h"
#include "buffers.h"
#include "channel_file.h"
#include "channel_memory.h"
#include "channel_weights.h"
#include "ffnskip/errors.h"
#include "model_stem.h"
#include "weight_rows.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <system_error>
#include <unordered_set>
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
    return sample_rows(ggml_nrows(weight), row_bytes, [&](int64_t first, int64_t n, uint8_t * to) {
        std::memcpy(to, static_cast<const uint8_t *>(weight->data) + size_t(first) * row_bytes, size_t(n) * row_bytes);
    });
}

ChannelLayout layout_of(const ggml_tensor * weight) {
    if (ggml_n_dims(weight) > 3) {
        throw Unsupported(std::string(weight->name) + " can't be stored by channel: it is no matrix");
    }
    try {
        return ChannelLayout(weight->type, weight->ne[0], weight->ne[1]);
    } catch (const std::invalid_argument & error) {
        throw Unsupported(std::string(weight->name) + ": " + error.what());
    }
}

uint64_t aligned(uint64_t bytes) {
    return (bytes + k_alignment - 1) / k_alignment * k_alignment;
}

std::string why_no_memory(uint64_t bytes, uint64_t available, size_t n_matrices, const std::string & model_path) {
    constexpr uint64_t k_mb = 1000000;
    return "leaving out channels takes a second copy of " + std::to_string(n_matrices) + " matrices, " +
           std::to_string((bytes + k_mb - 1) / k_mb) + " MB, and " + std::to_string(available / k_mb) +
           " MB of memory can be had. Leave out channels of fewer matrices or of a smaller model, choose a policy "
           "without "
           "channels, or write the copy into a file once, which takes no memory of its own: ffnskip channels " +
           (model_path.empty() ? "MODEL" : model_path);
}

}  // namespace

// A copy, and what it was made of.
struct ChannelStore::Copy {
    ChannelMatrix matrix;
    std::string   name;
    const void *  data;    // the weight's
    uint64_t      sample;  // of these
};

// What one add() has found and made.
struct ChannelStore::Batch {
    std::unordered_map<const ggml_tensor *, Copy> copies;
    std::optional<ChannelFile>                    file;    // where some are
    std::optional<ChannelMemory>                  memory;  // and the others
    uint64_t                                      bytes = 0, mapped_bytes = 0;
    std::unique_ptr<Batch>                        before;
};

struct ChannelStore::Missing {
    const ggml_tensor * weight;
    ChannelLayout       layout;
    ChannelSource       source;

    int64_t  n_experts() const { return weight->ne[2]; }
    uint64_t bytes() const { return uint64_t(layout.bytes(n_experts())); }

    Copy copy(const uint8_t * data) const {
        return { { layout, data, n_experts() }, weight->name, weight->data, sample_memory(weight) };
    }

    // Throws std::invalid_argument where the file's copy is one of another weight.
    void require(const ChannelFile::Matrix & copy) const {
        const auto refuse = [&](const char * what) {
            throw std::invalid_argument("is of another model: its " + std::string(weight->name) + what);
        };
        if (copy.layout.format->type != weight->type) {
            refuse(" is of another type");
        }
        if (copy.layout.n_in != layout.n_in || copy.layout.n_out != layout.n_out || copy.n_experts != n_experts()) {
            refuse(" is of another shape");
        }
        if (copy.sample != sample_rows(ggml_nrows(weight), ggml_row_size(weight->type, layout.n_in), source)) {
            refuse(" has other values");
        }
    }
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
        bytes_ = mapped_bytes_ = 0;
    }
    WeightRows                              rows(wanted.model_path, wanted.vectors);
    std::unordered_set<const ggml_tensor *> seen;
    std::vector<Missing>                    missing;
    for (const ggml_tensor * weight : wanted.weights) {
        if (find(weight) == nullptr && seen.insert(weight).second) {
            missing.push_back({ weight, layout_of(weight), rows.of(weight) });
        }
    }
    if (missing.empty()) {
        return;
    }
    auto batch = std::make_unique<Batch>();
    map(wanted, missing, *batch);
    build(wanted, missing, *batch);

    fingerprint_ = wanted.fingerprint;
    bytes_ += batch->bytes;
    mapped_bytes_ += batch->mapped_bytes;
    batch->before = std::move(batches_);
    batches_      = std::move(batch);
    latest_.store(batches_.get(), std::memory_order_release);
}

// Takes those that the file has out of the missing ones.
void ChannelStore::map(const Wanted & wanted, std::vector<Missing> & missing, Batch & batch) {
    const std::string path = channel_file_path(wanted.model_path);
    std::error_code   none;
    if (wanted.model_path.empty() || !std::filesystem::exists(path, none)) {
        return;
    }
    try {
        const ChannelFile & file = batch.file.emplace(path, wanted.fingerprint);
        for (const Missing & one : missing) {
            if (const ChannelFile::Matrix * found = file.find(one.weight->name)) {
                one.require(*found);
            }
        }
    } catch (const std::invalid_argument & error) {
        batch.file.reset();
        note(path + " is not used: it " + error.what());
        return;
    }
    const auto is_mapped = [&](const Missing & one) {
        const ChannelFile::Matrix * found = batch.file->find(one.weight->name);
        if (found != nullptr) {
            batch.copies.emplace(one.weight, one.copy(found->data));
            batch.mapped_bytes += one.bytes();
        }
        return found != nullptr;
    };
    missing.erase(std::remove_if(missing.begin(), missing.end(), is_mapped), missing.end());
    if (!missing.empty()) {
        note(path + " has no copy of " + std::to_string(missing.size()) + " matrices, " + missing[0].weight->name +
             " for one: they are copied into memory");
    }
}

// All in one piece of memory.
void ChannelStore::build(const Wanted & wanted, const std::vector<Missing> & missing, Batch & batch) {
    if (missing.empty()) {
        return;
    }
    for (const Missing & one : missing) {
        batch.bytes += aligned(one.bytes());
    }
    const uint64_t available = wanted.available_bytes ? *wanted.available_bytes : available_memory();
    if (batch.bytes > available) {
        std::string why = why_no_memory(batch.bytes, available, missing.size(), wanted.model_path);
        for (const std::string & text : notes()) {
            why += "; " + text;
        }
        throw Unsupported(why);
    }
    try {
        batch.memory.emplace(size_t(batch.bytes));
    } catch (const std::runtime_error & error) {
        throw Unsupported(error.what());
    }
    uint64_t done = 0;
    for (const Missing & one : missing) {
        tell(wanted.progress, double(done) / double(batch.bytes));
        uint8_t * to = batch.memory->data() + done;
        build_experts(one.layout, one.n_experts(), one.source, wanted.n_threads, to);
        batch.copies.emplace(one.weight, one.copy(to));
        done += aligned(one.bytes());
    }
    tell(wanted.progress, 1);
}

void ChannelStore::note(const std::string & text) {
    const std::lock_guard<std::mutex> lock(notes_mutex_);
    if (std::find(notes_.begin(), notes_.end(), text) == notes_.end()) {
        notes_.push_back(text);
    }
}

std::vector<std::string> ChannelStore::notes() const {
    const std::lock_guard<std::mutex> lock(notes_mutex_);
    return notes_;
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
               layout.n_in != weight->ne[0] || layout.n_out != weight->ne[1] ||
               copy->matrix.n_experts != weight->ne[2] || copy->sample != sample_memory(weight);
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
