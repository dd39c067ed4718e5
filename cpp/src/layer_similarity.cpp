#include "layer_similarity.h"

#include "similarity.h"

namespace ffnskip {

const float * LayerSimilarity::next(const ggml_tensor * residual) {
    const size_t n = size_t(residual->ne[0]), n_rows = size_t(ggml_nrows(residual));
    now_.swap(before_);
    now_.resize(n * n_rows);
    for (size_t r = 0; r < n_rows; ++r) {
        buffers_.read(residual, r * residual->nb[1], n * sizeof(float), now_.data() + r * n);
    }
    if (before_.size() != now_.size()) {
        return nullptr;
    }
    similarity_.resize(n_rows);
    for (size_t i = 0; i < before_.size(); ++i) {
        before_[i] = now_[i] - before_[i];
    }
    for (size_t r = 0; r < n_rows; ++r) {
        similarity_[r] = cosine<Pair::difference>(now_.data() + r * n, before_.data() + r * n, int64_t(n));
    }
    return similarity_.data();
}

}  // namespace ffnskip
