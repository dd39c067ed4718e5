// (placeholder of the lead; the store's own replaces it)
#pragma once

#include "channel_layout.h"
#include "channel_memory.h"
#include "channel_weights.h"

#include <ggml.h>
#include <llama.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace ffnskip {

struct ChannelMatrix {
    ChannelLayout   layout;
    const uint8_t * data;
};

class ChannelStore {
public:
    struct Wanted {
        std::vector<const ggml_tensor *> weights;
        std::vector<const ggml_tensor *> vectors;
        std::string                      fingerprint;
        std::string                      model_path;
        int                              n_threads = 1;
        std::function<bool(double)>      progress;
    };

    static std::shared_ptr<ChannelStore> of(const llama_model *) { return std::make_shared<ChannelStore>(); }
    void                                 add(const Wanted & wanted) {
        for (const ggml_tensor * weight : wanted.weights) {
            if (matrices_.count(weight))
                continue;
            ChannelLayout layout(weight->type, weight->ne[0], weight->ne[1]);
            memory_.emplace_back(size_t(layout.bytes()));
            build_channels(
                layout,
                [&](int64_t first, int64_t n, uint8_t * to) {
                    std::memcpy(to, static_cast<const char *>(weight->data) + first * weight->nb[1],
                                size_t(n) * weight->nb[1]);
                },
                2, memory_.back().data());
            matrices_.emplace(weight, ChannelMatrix{ layout, memory_.back().data() });
        }
    }
    uint64_t bytes() const {
        uint64_t sum = 0;
        for (const auto & [weight, matrix] : matrices_) {
            sum += uint64_t(matrix.layout.bytes());
        }
        return sum;
    }
    const ChannelMatrix & matrix(const ggml_tensor * weight) const { return matrices_.at(weight); }

private:
    std::map<const ggml_tensor *, ChannelMatrix> matrices_;
    std::vector<ChannelMemory>                   memory_;
};

}  // namespace ffnskip
