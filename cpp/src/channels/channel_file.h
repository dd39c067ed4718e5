// model.channels.gguf: copies of a model's weights by channel, to be mapped by all processes that want them and written
// once. Neither takes memory but the system's cache of files.
//
// A GGUF file with a tensor for each matrix, of its bytes filled up to whole pages of 4 KB, named as the weight is, and
// these keys:
//
//   ffnskip.channels.layout    uint32, k_channel_layout_version
//   ffnskip.channels.model     Controller::fingerprint() of the model
//   ffnskip.channels.types     [strings] and, in the order of the tensors, what each is a copy of: the weight's type,
//   ffnskip.channels.inputs    [uint64] its shape
//   ffnskip.channels.outputs   [uint64]
//   ffnskip.channels.experts   [uint64] 1 for a matrix alone
//   ffnskip.channels.samples   [uint64] and sample_rows() of it
#pragma once

#include "channel_layout.h"
#include "channel_weights.h"
#include "mapped_file.h"
#include "progress.h"

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace ffnskip {

// A file that is mapped.
class ChannelFile {
public:
    struct Matrix {
        ChannelLayout   layout;
        int64_t         n_experts;
        uint64_t        sample;
        const uint8_t * data;  // aligned to a page
    };

    // Throws std::invalid_argument, the reason alone, where the file is none, damaged, of another version or another
    // model.
    ChannelFile(const std::string & path, const std::string & fingerprint);

    // nullptr where the file has no copy of that weight.
    const Matrix * find(const std::string & name) const;

private:
    std::optional<MappedFile>               bytes_;
    std::unordered_map<std::string, Matrix> matrices_;
};

struct ChannelFilePart {
    std::string   name;
    ChannelLayout layout;
    ChannelSource source;
    int64_t       n_experts = 1;

    uint64_t bytes() const { return uint64_t(layout.bytes(n_experts)); }
};

// Into `path`, from its beginning to its end: whoever calls sees to it that nobody takes an unfinished file for a whole
// one. Throws std::system_error where the file can't be written, Interrupted where `progress` stops it.
void write_channel_file(const std::string & path, const std::string & fingerprint,
                        const std::vector<ChannelFilePart> & parts, int n_threads, const Progress & progress);

}  // namespace ffnskip
