#include "tensor_names.h"

#include <charconv>

namespace ffnskip {
namespace {

using Part = WeightName::Part;

// The first that the rest of a name begins with counts.
constexpr struct {
    std::string_view stem;
    Part             part;
} k_stems[] = {
    { "ffn_norm", Part::near_ffn },          { "ffn_", Part::ffn },
    { "post_ffw", Part::near_ffn },          { "pre_ffw", Part::near_ffn },
    { "post_attention_norm", Part::near_ffn }, { "layer_output_norm", Part::near_ffn },
    { "exp_probs_b", Part::near_ffn },
};

bool starts_with(std::string_view text, std::string_view prefix) {
    return text.substr(0, prefix.size()) == prefix;
}

}  // namespace

std::string_view original_name(std::string_view name) {
    const size_t first = name.find('#');
    const size_t last  = name.rfind('#');
    return first == last ? name : name.substr(first + 1, last - first - 1);
}

WeightName weight_name(std::string_view name) {
    constexpr std::string_view k_prefix = "blk.";

    name = original_name(name);
    WeightName out;
    if (!starts_with(name, k_prefix)) {
        return out;
    }
    const char * end   = name.data() + name.size();
    int          layer = -1;
    const auto   found = std::from_chars(name.data() + k_prefix.size(), end, layer);
    if (found.ec != std::errc() || layer < 0 || found.ptr == end || *found.ptr != '.') {
        return out;
    }
    out.layer = layer;
    const std::string_view rest(found.ptr + 1, size_t(end - found.ptr - 1));
    for (const auto & [stem, part] : k_stems) {
        if (starts_with(rest, stem)) {
            out.part = part;
            break;
        }
    }
    return out;
}

}  // namespace ffnskip
