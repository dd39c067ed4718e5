// What the names of tensors say: llama.cpp's of weights, and the scheduler's of copies.
#pragma once

#include "ffnskip/blocks.h"

#include <charconv>
#include <cstdint>
#include <string_view>

namespace ffnskip {

// A tensor the scheduler copied to another device is named "<device>#<name of the original>#<number>".
inline std::string_view original_name(std::string_view name) {
    const size_t first = name.find('#');
    const size_t last  = name.rfind('#');
    return first == last ? name : name.substr(first + 1, last - first - 1);
}

inline bool is_copy(std::string_view name) {
    return original_name(name).size() != name.size();
}

enum class Part : uint8_t {
    other,
    ffn,             // of an FFN block
    near_ffn,        // none, but may be read by one: norms around it, biases that steer the choice of experts
    attention,       // of an attention block
    near_attention,  // none, but may be read by one
    near_both,
};

struct WeightName {
    int  layer = -1;  // -1: of no layer
    Part part  = Part::other;
};

// The first that the rest of a name begins with counts.
constexpr struct {
    std::string_view stem;
    Part             part;
} k_stems[] = {
    { "ffn_norm", Part::near_ffn },
    { "ffn_", Part::ffn },
    { "ffn", Part::near_ffn },  // mpt: ffn.act.scales
    { "post_ffw", Part::near_ffn },
    { "pre_ffw", Part::near_ffn },
    { "post_attention_norm", Part::near_both },
    { "layer_output_norm", Part::near_ffn },
    { "exp_probs_b", Part::near_ffn },
    { "attn_norm", Part::near_attention },
    { "attn_output_norm", Part::near_attention },
    { "attn_", Part::attention },
};

// "blk.<layer>.<rest>"; layer -1 for any other name.
struct LayerName {
    int              layer = -1;
    std::string_view rest;
};

inline LayerName layer_name(std::string_view name) {
    int          layer = -1;
    const char * end   = name.data() + name.size();
    const char * dot   = name.substr(0, 4) == "blk." ? std::from_chars(name.data() + 4, end, layer).ptr : end;
    if (layer < 0 || dot == end || *dot != '.') {
        return {};
    }
    return { layer, std::string_view(dot + 1, size_t(end - dot - 1)) };
}

// Of the tensor, or of what it is a copy of.
inline WeightName weight_name(std::string_view name) {
    const auto [layer, rest] = layer_name(original_name(name));
    if (layer < 0) {
        return {};
    }
    for (const auto & [stem, part] : k_stems) {
        if (rest.substr(0, stem.size()) == stem) {
            return { layer, part };
        }
    }
    return { layer, Part::other };
}

// Whether a block of this kind may read the weight, though it is not made of it. Factors of positions belong to no layer.
inline bool may_read(BlockKind kind, std::string_view name) {
    const auto [layer, part] = weight_name(name);
    const bool of_positions  = layer < 0 && original_name(name).substr(0, 5) == "rope_";
    return kind == BlockKind::ffn
               ? part == Part::ffn || part == Part::near_ffn || part == Part::near_both
               : part == Part::attention || part == Part::near_attention || part == Part::near_both || of_positions;
}

// ---- matrices whose input channels can be left out ----

// What they read. Matrices of a layer that are of one kind read the same input.
enum class InputKind : uint8_t { qkv, o, up, down };

constexpr int          k_input_kinds                     = 4;
constexpr const char * k_input_kind_names[k_input_kinds] = { "qkv", "o", "up", "down" };

constexpr struct {
    std::string_view name;
    InputKind        kind;
    bool             of_experts = false;  // a matrix for each of them
} k_products[] = {
    { "attn_q.weight", InputKind::qkv },
    { "attn_k.weight", InputKind::qkv },
    { "attn_v.weight", InputKind::qkv },
    { "attn_qkv.weight", InputKind::qkv },
    { "attn_output.weight", InputKind::o },
    { "ffn_gate.weight", InputKind::up },
    { "ffn_up.weight", InputKind::up },
    { "ffn_down.weight", InputKind::down },
    { "ffn_gate_exps.weight", InputKind::up, true },
    { "ffn_up_exps.weight", InputKind::up, true },
    { "ffn_gate_up_exps.weight", InputKind::up, true },
    { "ffn_down_exps.weight", InputKind::down, true },
};
constexpr int k_products_per_layer = int(sizeof(k_products) / sizeof(k_products[0]));

// A number of such a matrix: k_products_per_layer * layer + its place in the table; -1 for others.
inline int product_number(std::string_view name) {
    const auto [layer, rest] = layer_name(name);
    for (int i = 0; layer >= 0 && i < k_products_per_layer; ++i) {
        if (rest == k_products[i].name) {
            return layer * k_products_per_layer + i;
        }
    }
    return -1;
}

inline bool is_of_experts(int product) {
    return k_products[product % k_products_per_layer].of_experts;
}

// A number of what it reads: k_input_kinds * layer + kind.
inline int input_of(int product) {
    return product / k_products_per_layer * k_input_kinds + int(k_products[product % k_products_per_layer].kind);
}

inline bool is_of_ffn(int input) {
    const InputKind kind = InputKind(input % k_input_kinds);
    return kind == InputKind::up || kind == InputKind::down;
}

}  // namespace ffnskip
