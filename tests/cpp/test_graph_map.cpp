// Property: the FFN block is found in graphs that the scheduler has spread over devices, where it puts copies in place
// of operands. Each graph is built by hand, cut as the scheduler cuts it, and compared with the same graph uncut.
#include "expect.h"
#include "graph_map.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

using namespace ffnskip;

namespace {

constexpr int64_t k_embd = 32, k_ff = 64, k_rows = 2;

enum class Add { f_h, h_f, parallel };
enum class Beside { nothing, second_reader, norm_behind };  // the FFN

// One layer, and a second add behind it. `copied` names the tensors that the nodes which read them get as copies;
// `early` are copies that another node has read before.
class Layer {
public:
    Layer(Add add, std::set<std::string> copied, bool early = false, bool experts = false,
          Beside beside = Beside::nothing)
        : copied_(std::move(copied)), beside_(beside) {
        ctx_.reset(ggml_init({ size_t(1) << 20, nullptr, true }));
        ggml_tensor * ids = ggml_new_tensor_1d(ctx_.get(), GGML_TYPE_I32, k_rows);
        ggml_tensor * x   = node(ggml_get_rows(ctx_.get(), weight("token_embd.weight", k_embd, 32), ids), "embd");
        ggml_tensor * a   = node(ggml_scale(ctx_.get(), x, 2.0f), "attn_out-0");
        ggml_tensor * h   = node(ggml_add(ctx_.get(), a, x), "ffn_inp-0");
        if (early) {
            node(ggml_scale(ctx_.get(), read(h), 3.0f), "early");
        }
        ggml_tensor * f = ffn(node(ggml_rms_norm(ctx_.get(), h, 1e-5f), "norm-0"), experts);
        if (add == Add::parallel) {
            ggml_tensor * part = node(ggml_add(ctx_.get(), read(f), read(x)), "part-0");
            node(ggml_add(ctx_.get(), read(part), read(a)), "l_out-0");
        } else {
            node(add == Add::f_h ? ggml_add(ctx_.get(), read(f), read(h)) : ggml_add(ctx_.get(), read(h), read(f)),
                 "l_out-0");
        }
    }

    GraphMap learn(GraphLearner::DeviceFault device_fault = edits_fault) const {
        GraphLearner learner(2, device_fault);  // the last layer is never skipped
        for (const ggml_tensor * each : nodes_) {
            learner.add(each);
        }
        return learner.finish();
    }

    // As if the node had been computed in this buffer.
    void put(const std::string & name, ggml_backend_buffer_t buffer) { nodes_[size_t(index(name))]->buffer = buffer; }

    int index(const std::string & name) const {
        for (size_t i = 0; i < nodes_.size(); ++i) {
            if (nodes_[i]->name == name) {
                return int(i);
            }
        }
        return -1;
    }

private:
    ggml_tensor * ffn(ggml_tensor * x, bool experts) {
        if (!experts) {
            ggml_tensor * up   = read(weight("blk.0.ffn_up.weight", k_embd, k_ff));
            ggml_tensor * down = read(weight("blk.0.ffn_down.weight", k_ff, k_embd));
            ggml_tensor * wide = node(ggml_mul_mat(ctx_.get(), up, read(x)), "up-0");
            ggml_tensor * out  = node(ggml_mul_mat(ctx_.get(), down, read(wide)), "ffn_out-0");
            if (beside_ == Beside::second_reader) {
                out = node(ggml_add(ctx_.get(), out, node(ggml_scale(ctx_.get(), x, 0.5f), "half-0")), "sum-0");
            }
            return beside_ == Beside::norm_behind ? node(ggml_rms_norm(ctx_.get(), out, 1e-5f), "normed-0") : out;
        }
        ggml_tensor * logits =
            node(ggml_mul_mat(ctx_.get(), weight("blk.0.ffn_gate_inp.weight", k_embd, 4), x), "logits-0");
        ggml_tensor * ids    = node(ggml_argmax(ctx_.get(), logits), "argmax-0");
        ggml_tensor * chosen = node(ggml_reshape_2d(ctx_.get(), ids, 1, k_rows), "ids-0");
        ggml_tensor * down   = weight("blk.0.ffn_down_exps.weight", k_embd, k_embd, 4);
        ggml_tensor * rows   = node(ggml_reshape_3d(ctx_.get(), x, k_embd, 1, k_rows), "rows-0");
        ggml_tensor * out    = node(ggml_mul_mat_id(ctx_.get(), read(down), rows, chosen), "down-0");
        return node(ggml_reshape_2d(ctx_.get(), out, k_embd, k_rows), "ffn_out-0");
    }

    ggml_tensor * weight(const char * name, int64_t n_in, int64_t n_out, int64_t n_expert = 1) {
        return ggml_set_name(ggml_new_tensor_3d(ctx_.get(), GGML_TYPE_F32, n_in, n_out, n_expert), name);
    }

    ggml_tensor * node(ggml_tensor * tensor, const char * name) {
        nodes_.push_back(place(ggml_set_name(tensor, name)));
        return tensor;
    }

    // An address of its own, which nothing is ever read from.
    ggml_tensor * place(ggml_tensor * tensor) {
        tensor->data = reinterpret_cast<void *>(++n_placed_ * 4096);
        return tensor;
    }

    // The tensor, or the scheduler's one copy of it.
    ggml_tensor * read(ggml_tensor * tensor) {
        if (copied_.count(tensor->name) == 0) {
            return tensor;
        }
        ggml_tensor *& copy = copies_[tensor];
        if (copy == nullptr) {
            copy = place(ggml_format_name(ggml_dup_tensor(ctx_.get(), tensor), "CUDA0#%s#0", tensor->name));
        }
        return copy;
    }

    struct Free {
        void operator()(ggml_context * ctx) const { ggml_free(ctx); }
    };
    std::unique_ptr<ggml_context, Free>    ctx_;
    std::set<std::string>                  copied_;
    Beside                                 beside_;
    std::map<ggml_tensor *, ggml_tensor *> copies_;
    std::vector<ggml_tensor *>             nodes_;
    uintptr_t                              n_placed_ = 0;
};

int n_left_out(const GraphMap & map) {
    return int(std::count_if(map.nodes.begin(), map.nodes.end(),
                             [](const Node & node) { return node.role == Role::body || node.role == Role::branch; }));
}

const FoundBlock & ffn(const GraphMap & map) {
    return map.blocks[size_t(block_of(0, BlockKind::ffn))];
}

void expect_same(const Layer & cut, const Layer & whole, const std::string & what) {
    const GraphMap    got_map = cut.learn(), expected_map = whole.learn();
    const FoundBlock &got = ffn(got_map), &expected = ffn(expected_map);
    expect(expected.skippable && expected.layer == 0, what + ": the uncut graph is understood");
    expect(got.skippable, what + ": not refused, but " + got.why_not);
    const int add = whole.index(expected.residual == "parallel" ? "part-0" : "l_out-0");
    expect(got.layer == 0 && got.residual_add == add, what + ": the add");
    expect(got.branch == whole.index("ffn_out-0"), what + ": f");
    expect(got.h == expected.h && got.h_src == expected.h_src, what + ": h");
    expect(got.residual == expected.residual && got.output == expected.output, what + ": the form");
    expect(n_left_out(got_map) == n_left_out(expected_map), what + ": what is left out");
    expect(got.bytes_per_token == expected.bytes_per_token && got.weights.size() == expected.weights.size(),
           what + ": weights");
}

const Input & input(const GraphMap & map, InputKind kind) {
    return map.inputs[size_t(kind)];
}

// What the products of an FFN read is found, and who may leave channels of it out.
void expect_inputs() {
    const Layer    plain(Add::f_h, {});
    const GraphMap map = plain.learn();
    for (const auto & [kind, node, product, number] :
         { std::tuple{ InputKind::up, "norm-0", "up-0", 6 }, std::tuple{ InputKind::down, "up-0", "ffn_out-0", 7 } }) {
        const Input & found = input(map, kind);
        expect(found.sparse() && found.weights.size() == 1 && !found.normalised, node + std::string(": usable"));
        expect(found.node == plain.index(node), node + std::string(": the input"));
        expect(map.nodes[size_t(found.node)].input == int(kind), node + std::string(" knows its products"));
        expect(map.nodes[size_t(plain.index(product))].product == number, product + std::string(" is a product"));
    }
    expect(input(map, InputKind::qkv).weights.empty() && !input(map, InputKind::o).usable(), "no attention, no inputs");

    const GraphMap read_twice = Layer(Add::f_h, {}, false, false, Beside::second_reader).learn();
    expect(input(read_twice, InputKind::up).why_not == "its input is read by node 'half-0' too",
           "an input that others read: " + input(read_twice, InputKind::up).why_not);
    expect(input(read_twice, InputKind::down).usable(), "the other input of that block");
    expect(input(Layer(Add::f_h, {}, false, false, Beside::norm_behind).learn(), InputKind::down).normalised,
           "a norm behind the block");
    expect(input(Layer(Add::parallel, {}).learn(), InputKind::down).sparse(), "beside attention");

    // Batches of many rows: the product is computed elsewhere, of a copy of the input. The input itself stays.
    const Layer    cut(Add::f_h, { "up-0", "blk.0.ffn_down.weight" });
    const GraphMap cut_map = cut.learn();
    expect(input(cut_map, InputKind::down).usable() && input(cut_map, InputKind::down).node == cut.index("up-0"),
           "an input that was copied: " + input(cut_map, InputKind::down).why_not);

    // What experts read is read by the router, too.
    const Layer    experts(Add::f_h, {}, false, true);
    const GraphMap experts_map = experts.learn();
    const Input &  of_experts  = input(experts_map, InputKind::down);
    expect(of_experts.sparse() && of_experts.weights.size() == 1 && of_experts.n_experts_used == 1,
           "experts: " + of_experts.why_not);
    expect(of_experts.node == experts.index("rows-0") && of_experts.ids == experts.index("ids-0"), "what they read");
    expect(experts_map.nodes[size_t(experts.index("rows-0"))].input == int(InputKind::down), "all of it is there");
    expect(experts_map.nodes[size_t(experts.index("down-0"))].product == 11, "their product");
    const LayerInput told = described(of_experts, int(InputKind::down));
    expect(told.n_channels == k_embd && told.bytes_per_token * 4 == told.weights[0].bytes, "one of four is read");
}

const std::string & faulty(ggml_backend_dev_t) {
    static const std::string fault = "device 'X' computes what is left out";
    return fault;
}

}  // namespace

int main() {
    const struct {
        Add          add;
        const char * residual;
        const char * name;
    } kinds[] = { { Add::f_h, "sequential", "f + h" },
                  { Add::h_f, "in place", "h + f" },
                  { Add::parallel, "parallel", "parallel" } };
    for (const auto & kind : kinds) {
        const Layer       whole(kind.add, {});
        const std::string name = kind.name;
        expect(ffn(whole.learn()).residual == kind.residual, name + ": the form");
        // The scheduler moves the residual add of the last layer on the CPU to the GPU.
        expect_same(Layer(kind.add, { "ffn_out-0", "ffn_inp-0", "embd", "attn_out-0" }), whole, name + ", both copied");
        // Weights of the FFN on the CPU, those of attention on the GPU.
        expect_same(Layer(kind.add, { "ffn_out-0", "norm-0" }), whole, name + ", f copied");
        // Batches of many rows: weights are copied to the GPU for one multiplication.
        expect_same(Layer(kind.add, { "blk.0.ffn_up.weight", "blk.0.ffn_down.weight" }), whole,
                    name + ", weights copied");
        // The two parts of a parallel block on two devices.
        expect_same(Layer(kind.add, { "part-0" }), whole, name + ", the first sum copied");
    }

    for (const Add add : { Add::f_h, Add::h_f }) {
        const GraphMap whole = Layer(add, {}).learn(), early = Layer(add, { "ffn_inp-0" }, true).learn();
        expect(ffn(whole).output < 0, "h is there when f is computed");
        expect(ffn(early).skippable && ffn(early).output == ffn(early).residual_add,
               "of h that was copied early, the original may be gone: f is kept until h + f is known");
    }

    const Layer experts(Add::f_h, {}, false, true);
    expect(ffn(experts.learn()).form == "experts" && !ffn(experts.learn()).fetches_experts, "experts where they are");
    const FoundBlock fetched = ffn(Layer(Add::f_h, { "blk.0.ffn_down_exps.weight" }, false, true).learn());
    expect(fetched.skippable && fetched.fetches_experts, "experts fetched for a batch");

    expect_inputs();

    // Every node of a block counts, and no other.
    const std::unique_ptr<ggml_backend_buffer, void (*)(ggml_backend_buffer_t)> buffer(
        ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), 64), ggml_backend_buffer_free);
    for (const auto & [name, counts] : std::map<std::string, bool>{ { "attn_out-0", false },
                                                                    { "norm-0", true },
                                                                    { "up-0", true },
                                                                    { "ffn_out-0", true },
                                                                    { "l_out-0", true } }) {
        Layer layer(Add::f_h, {});
        layer.put(name, buffer.get());
        expect(ffn(layer.learn()).skippable, "the CPU honours what is asked of " + name);
        expect(ffn(layer.learn(faulty)).why_not == (counts ? faulty(nullptr) : ""), name + " on a device with a fault");
    }
    return result();
}
