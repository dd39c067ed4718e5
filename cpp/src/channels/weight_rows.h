// Rows of a loaded model's weights, as its file has them: taken from memory where they lie there in that order, else from
// the file.
#pragma once

#include "channel_weights.h"
#include "model_file.h"

#include <ggml.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ffnskip {

// A hash of rows of a matrix here and there: tells it from another of the same name and shape.
uint64_t sample_rows(int64_t n_rows, size_t row_bytes, const ChannelSource & source);

class WeightRows {
public:
    // `model_path`: of the model's file, the first where it is split; "" where that is not known. `vectors`: tensors of
    // the model that tell it from others, and that lie in memory as in the file.
    WeightRows(std::string model_path, std::vector<const ggml_tensor *> vectors);

    // Of a weight, of experts one matrix behind the other; used as long as this object is there. Throws Unsupported where there is no such source, or the file
    // is not the model's.
    ChannelSource of(const ggml_tensor * weight);

private:
    const ModelFile & file();  // opened when it is first needed

    std::string                      path_;
    std::vector<const ggml_tensor *> vectors_;
    std::unique_ptr<ModelFile>       file_;
};

}  // namespace ffnskip
