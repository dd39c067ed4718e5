// Carries out policy `channels` while the graphs of a batch are evaluated.
//
// A few rows: their products become operations that leave channels out, each row its own. More rows: the channels of
// those that leave some out are set to zero in the input itself, row by row, and the products stay as they are; so the
// outcome of a row does not depend on its neighbours.
//
// Experts: which channels reach far depends on the expert, and the router reads the same input. So the input stays, and
// for several rows, too, products become operations, where each row has its threshold. Where llama.cpp moves a product
// of many rows to another device, rows that leave channels out are computed here, and written over what that made of
// them.
#pragma once

#include "buffers.h"
#include "channel_products.h"
#include "channel_sequences.h"
#include "ffnskip/config.h"
#include "ffnskip/rows.h"
#include "graph_follower.h"
#include "recorder.h"

#include <llama.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace ffnskip {

class ChannelEvaluation {
public:
    ChannelEvaluation(const Settings & settings, Recorder & recorder, Buffers & buffers)
        : settings_(settings), recorder_(recorder), buffers_(buffers) {}

    // Settings may leave out channels of the inputs for which `wanted`, [n_inputs], is 1, in a model with this graph; none
    // do before use().
    void set_model(const GraphMap & map, const std::vector<uint8_t> & wanted, std::shared_ptr<ChannelStore> store);
    // Whether set_model() was told so of all inputs that are wanted here and can leave any out.
    bool has(const GraphMap & map, const std::vector<uint8_t> & wanted) const;

    // What settings mean for the inputs, [n_inputs], of that model. has() is true of what they want.
    struct Inputs {
        std::vector<Recorder::Channels> channels;
        std::vector<double>             left_out;  // what ChannelSequences is told
    };
    Inputs inputs_of(const GraphMap & map, const Settings & settings) const;
    // The settings are now those that this came from. `forget`: whatever was found for sequences; else each goes on
    // with it, under the settings that it was found under.
    void use(const Inputs & inputs, bool forget);

    bool any() const { return any_; }
    bool active(int input) const { return any_ && is_active(settings_, input); }
    void reserve(int n_threads) { products_.reserve(n_threads); }

    ChannelSequences & sequences() { return sequences_; }

    // ---- a decode ----
    void       begin_decode(const llama_batch & batch, const RowKind * kinds);
    ChannelRow row(size_t i) const { return rows_[i].is; }

    // ---- an evaluation of rows `ubatch`, [n_rows] numbers in the batch ----
    void begin(const int32_t * ubatch, int32_t n_rows);
    void end();

    // `node` is of an active input, or a product of one. True: observe() wants to see it.
    bool ask(ggml_tensor * node, const Node & known, const GraphFollower & follower);
    void observe(ggml_tensor * node, const Node & known, const GraphFollower & follower);

private:
    struct Row {
        ChannelRow   is       = ChannelRow::full;
        llama_seq_id sequence = 0;
        llama_pos    position = 0;
        bool         output   = false;
    };

    // A product that was edited, and its rows, as numbers in the batch.
    struct Edited {
        int             product;
        const int32_t * rows;
        int64_t         n_rows;
    };

    bool is_active(const Settings & settings, int input) const {
        return settings.channels[size_t(input)] != 0 && products_.active(input);
    }
    void            count_the_others(const GraphMap & map, const Settings & settings, Inputs & inputs) const;
    float           threshold(const Row & row, int input);
    const int32_t * rows_of(const ggml_tensor * node, int64_t n) const;
    bool            leaves_out(const Row & row) const { return row.is == ChannelRow::leaves_out; }
    void            edit(ggml_tensor * node, int product, const int32_t * rows, int64_t n_rows);
    bool            by_operation(int input, const GraphFollower & follower) const;
    bool            any_wants_reaches() const;
    bool            is_moved(const Node & known, const GraphFollower & follower) const;
    void            compute_here(ggml_tensor * node, int product);
    void            observe_rows(ggml_tensor * node, int input, bool leave_out);
    void            observe_experts(const ggml_tensor * v, const ggml_tensor * ids, int input);
    void            read_ids(const ggml_tensor * ids, int64_t row);
    const float *   read_experts(const ggml_tensor * v, int64_t row, int64_t used);
    bool            wants_reaches(const Row & row) const;
    void            take_reaches(const Row & row, int input);
    float *         read(const ggml_tensor * node, size_t offset, int64_t n);

    const Settings & settings_;
    Recorder &       recorder_;
    Buffers &        buffers_;
    bool             any_ = false;  // channels are left out
    ChannelProducts  products_;
    ChannelSequences sequences_;
    std::vector<int> product_of_;  // [n_inputs] a product that reads the input

    std::vector<Row>     rows_;  // at least [n_batch]
    const int32_t *      ubatch_ = nullptr;
    int32_t              n_rows_ = 0;
    bool                 few_    = false;  // and some leave channels out
    std::vector<int32_t> outputs_;         // of the ubatch, those with output
    std::vector<Edited>  edited_;          // one for each input
    std::vector<float>   thresholds_;
    std::vector<float>   reaches_;
    std::vector<int32_t> ids_;
    std::vector<float>   input_;   // a row that is in a device's memory
    std::vector<float>   output_;  // and of a product
};

}  // namespace ffnskip
