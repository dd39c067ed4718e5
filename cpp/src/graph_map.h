// Where the FFN blocks are in the graph of a decode.
//
// A GraphMap describes a graph by structure alone: for each node, in the order the scheduler visits them, the
// operation and which earlier nodes it reads. It holds no address of a node, so it fits every graph of that structure,
// whatever its batch size and however often libllama has built it anew. Weights are told apart by address: those
// belong to the model and stay.
//
// The FFN block of layer L is what is derived from the weights blk.L.ffn_*, up to the residual add. Three shapes:
//
//   sequential   h ----> norm, FFN ----> f       out = f + h                  one add
//   in place     the same                        out = h + f, written over h  one add that destroys h
//   parallel     attention a and FFN f from x    out = (f + x) + a            h = x + a exists only as out - f
#pragma once

#include "device_check.h"

#include <ggml.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace ffnskip {

// What a node is to the FFN block of its layer.
enum class Role : uint8_t {
    none,
    body,          // computed for the FFN alone: left out when the block is skipped
    branch,        // body, and its result is f, the FFN's part of the residual
    residual_add,  // adds f to the residual
    layer_output,  // parallel blocks: the later add whose result is h + f
};

enum class Form : uint8_t { sequential, in_place, parallel };

struct Node {
    static constexpr int     k_src  = 3;   // operands compared; no FFN operation of ggml has more that are nodes
    static constexpr int32_t k_none = -1;  // no operand
    static constexpr int32_t k_leaf = -2;  // a weight, an input, a cache or a copy made by the scheduler

    ggml_op             op     = GGML_OP_NONE;
    Role                role   = Role::none;
    int16_t             layer  = -1;       // of the block, where role is not none
    int32_t             src[k_src] = { k_none, k_none, k_none };  // index of the operand's node, or a constant above
    const ggml_tensor * weight = nullptr;  // operand 0, where that is a weight
};

struct Block {
    int         layer        = -1;
    int         n_body       = 0;     // nodes left out, of all that the block is made of
    int         branch       = -1;    // node indices
    int         residual_add = -1;
    int         layer_output = -1;    // parallel blocks only
    int         h_src        = -1;    // operand number of h in the residual add
    int         h            = -1;    // node index of that operand, or of what it is a copy of from another device; k_leaf
                                      // where the copy was made early, and the original may be gone
    uint64_t    bytes        = 0;     // of weights read for one token: of experts, those chosen
    int64_t     n_rows       = 0;     // of the residual add; fewer than the batch's tokens where rows were pruned
    Form        form         = Form::sequential;
    bool        gated        = false;
    bool        experts      = false;
    // Weights of experts come to the device as needed (batches of many rows), and ggml reads which are needed before it asks
    // about the node that needs them. Such a block has to be computed, even if every row skips it.
    bool        fetches_experts = false;
    std::string refusal;              // why the block can't be skipped; empty where it can
    std::vector<const ggml_tensor *> weights;  // read by the nodes left out
};

struct GraphMap {
    int64_t            n_embd   = 0;
    int64_t            n_tokens = 0;  // of the batch it was learnt from
    std::vector<Node>  nodes;
    std::vector<Block> blocks;  // [n_layer], layer -1 where a layer has no FFN block
};

// True if `node` has the structure of `map.nodes[i]` in an evaluation whose earlier nodes are `seen[0..i)`.
// `node` must be unedited.
bool matches(const Node & expected, const ggml_tensor * node, ggml_tensor * const * seen);

// The node that reads the token embeddings, the first of every evaluation, if this is one: its weight, else null.
const ggml_tensor * embedding_weight(const ggml_tensor * node);

// Learns a GraphMap from the nodes of one evaluation, told in order. Allocates; not for the hot path.
class GraphLearner {
public:
    using DeviceFault = const std::string & (*) (ggml_backend_dev_t device);

    // A block on a device with a fault is refused.
    explicit GraphLearner(int n_layer, DeviceFault device_fault = edits_fault) :
        n_layer_(n_layer), device_fault_(device_fault) {}

    void add(const ggml_tensor * node);
    GraphMap finish();

private:
    struct Operand {
        int32_t            node   = Node::k_none;
        bool               weight = false;
        const char *       name   = "";
    };

    Operand operand(const ggml_tensor * src) const;
    void    derive(const ggml_tensor * node, int index, const std::vector<Operand> & operands);
    bool    is_residual_add(const ggml_tensor * node, const std::vector<Operand> & operands, int layer, int & h) const;
    void    refuse(int layer, const std::string & why);
    void    find_parallel_output(Block & block);
    void    take_in_feeders(int layer);
    void    describe(Block & block) const;
    void    try_devices();

    // What is remembered of a node beyond its Node.
    struct Seen {
        std::vector<int32_t> operands;        // indices of all operands that are nodes
        int                  layer = -1;      // derived from this layer's FFN weights
        uint64_t             bytes = 0;       // of weights it reads
        std::vector<const ggml_tensor *> weights;
        bool                 activation = false;  // [n_embd, rows] float32: could be a residual
        bool                 removable  = false;  // leaving it out can't be noticed but by its readers
        bool                 placed     = false;  // in the memory of `device`
        ggml_backend_dev_t   device     = nullptr;
        std::string          name;
    };

    int                                            n_layer_;
    DeviceFault                                    device_fault_;
    GraphMap                                       map_;
    std::vector<Seen>                              seen_;
    std::unordered_map<const ggml_tensor *, int32_t> index_;
    std::unordered_map<std::string, int32_t>       by_name_;
    std::unordered_set<const ggml_tensor *>        copies_read_;  // of nodes, made by the scheduler for another device
};

}  // namespace ffnskip
