// The Python module ffnskip_cpp._core: translation only. The full documentation is in _core.pyi and the Python modules.
#include "ffnskip/ffnskip.h"
#include "similarity.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;
using namespace ffnskip;

namespace {

template <typename T>
py::array_t<T> array_2d(const std::vector<T> & values, int64_t rows, int64_t columns) {
    py::array_t<T> out({ py::ssize_t(rows), py::ssize_t(columns) });
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
}

py::array_t<bool> skipped_array(const Trace & trace) {
    py::array_t<bool> out({ py::ssize_t(trace.n_tokens), py::ssize_t(trace.n_layer) });
    std::transform(trace.skipped.begin(), trace.skipped.end(), out.mutable_data(), [](uint8_t v) { return v != 0; });
    return out;
}

template <typename T>
T * pointer(uintptr_t address, const char * what) {
    if (address == 0) {
        throw py::value_error(std::string(what) + ": the address is null; the model is closed");
    }
    return reinterpret_cast<T *>(address);
}

template <typename T> py::object or_none(const std::vector<T> & values) {
    return values.empty() ? py::object(py::none()) : py::cast(values);
}

py::tuple config_state(const Config & c) {
    return py::make_tuple(policy_name(c.policy), c.sim_threshold, c.cold_s, c.cold_e, c.warm_up_index, c.skip_ratio,
                          c.max_skip, or_none(c.layers), c.seed, or_none(c.layer_thresholds), c.check_stride);
}

Config make_config(const std::string & policy, float sim_threshold, std::optional<int> cold_s, std::optional<int> cold_e,
                   int warm_up_index, float skip_ratio, std::optional<int> max_skip,
                   std::optional<std::vector<int>> layers, uint64_t seed, std::optional<std::vector<float>> layer_thresholds,
                   int check_stride) {
    Config config;
    config.policy           = policy_from_name(policy);
    config.sim_threshold    = sim_threshold;
    config.cold_s           = cold_s;
    config.cold_e           = cold_e;
    config.warm_up_index    = warm_up_index;
    config.skip_ratio       = skip_ratio;
    config.max_skip         = max_skip;
    config.layers           = layers.value_or(std::vector<int>());
    config.seed             = seed;
    config.layer_thresholds = layer_thresholds.value_or(std::vector<float>());
    config.check_stride     = check_stride;
    config.validate();
    return config;
}

std::string config_repr(const Config & c) {
    const char * names[] = { "policy", "sim_threshold", "cold_s", "cold_e", "warm_up_index", "skip_ratio", "max_skip", "layers", "seed", "layer_thresholds", "check_stride" };
    const py::tuple values = config_state(c);
    std::string     text;
    for (size_t i = 0; i < values.size(); ++i) {
        text += (i == 0 ? "" : ", ") + std::string(names[i]) + "=" + std::string(py::str(py::repr(values[i])));
    }
    return "SkipConfig(" + text + ")";
}

void check_status(int32_t status) {
    if (status == 0) {
        return;
    }
    const char * meaning = status == 1    ? "no room for the batch: the context is full"
                           : status == 2  ? "aborted by the abort callback"
                           : status == -1 ? "the batch is invalid"
                                          : "llama.cpp failed";
    throw std::runtime_error("llama_decode returned " + std::to_string(status) + ": " + meaning);
}

const RowKind * row_kinds(const std::optional<std::vector<uint8_t>> & kinds, size_t n_tokens) {
    static_assert(sizeof(RowKind) == 1, "kinds are passed as bytes");
    if (kinds && kinds->size() != n_tokens) {
        throw py::value_error("kinds: " + std::to_string(kinds->size()) + " entries for " + std::to_string(n_tokens) + " tokens");
    }
    return kinds ? reinterpret_cast<const RowKind *>(kinds->data()) : nullptr;
}

// A Controller with the batch it decodes from, so that a token costs no allocation.
class PyController {
public:
    Controller controller;

    uintptr_t callback() {
        llama_context_params params = llama_context_default_params();
        controller.attach(params);
        return reinterpret_cast<uintptr_t>(params.cb_eval);
    }

    uintptr_t user_data() {
        llama_context_params params = llama_context_default_params();
        controller.attach(params);
        return reinterpret_cast<uintptr_t>(params.cb_eval_user_data);
    }

    // Tokens of sequence 0 from position `position` on, in place of whatever the memory holds from there.
    void decode(uintptr_t ctx_address, const std::vector<llama_token> & tokens, int32_t position,
                const std::optional<std::vector<uint8_t>> & kinds, bool all_logits) {
        auto * ctx = pointer<llama_context>(ctx_address, "decode");
        if (tokens.empty()) {
            throw py::value_error("decode: no tokens");
        }
        const RowKind * rows = row_kinds(kinds, tokens.size());
        fill(tokens, position, all_logits);
        py::gil_scoped_release unlocked;
        go_back(ctx, position);
        check_status(rows == nullptr ? controller.decode(ctx, batch_, Fed::prompt) : controller.decode(ctx, batch_, rows));
    }

    // A llama_batch made elsewhere.
    void decode_batch(uintptr_t ctx_address, uintptr_t batch_address, std::optional<bool> generated) {
        auto *            ctx   = pointer<llama_context>(ctx_address, "decode_batch");
        const llama_batch batch = *pointer<llama_batch>(batch_address, "decode_batch");
        const Fed         fed   = !generated ? Fed::recognise : *generated ? Fed::generated : Fed::prompt;
        py::gil_scoped_release unlocked;
        check_status(controller.decode(ctx, batch, fed));
    }

    // One turn of the generation loop: decodes a generated token, samples the next.
    llama_token step(uintptr_t ctx_address, uintptr_t sampler_address, llama_token token, int32_t position) {
        auto * ctx     = pointer<llama_context>(ctx_address, "step");
        auto * sampler = pointer<llama_sampler>(sampler_address, "step");
        py::gil_scoped_release unlocked;
        tokens_.assign(1, token);
        fill(tokens_, position, false);
        go_back(ctx, position);
        check_status(controller.decode(ctx, batch_, Fed::generated));
        return llama_sampler_sample(sampler, ctx, -1);
    }

private:
    static void go_back(llama_context * ctx, int32_t position) {
        if (!llama_memory_seq_rm(llama_get_memory(ctx), 0, position, -1)) {
            throw std::runtime_error("the memory of this model can't go back to position " + std::to_string(position) +
                                     "; reset() it and evaluate the text again");
        }
    }

    void fill(const std::vector<llama_token> & tokens, int32_t position, bool all_logits) {
        const size_t n = tokens.size();
        if (&tokens != &tokens_) {
            tokens_ = tokens;
        }
        positions_.resize(n);
        sequences_.assign(n, &sequence_);
        counts_.assign(n, 1);
        logits_.assign(n, int8_t(all_logits));
        logits_[n - 1] = 1;
        for (size_t i = 0; i < n; ++i) {
            positions_[i] = position + int32_t(i);
        }
        batch_ = { int32_t(n), tokens_.data(), nullptr, positions_.data(), counts_.data(), sequences_.data(), logits_.data() };
    }

    std::vector<llama_token>    tokens_;
    std::vector<llama_pos>      positions_;
    std::vector<llama_seq_id *> sequences_;
    std::vector<int32_t>        counts_;
    std::vector<int8_t>         logits_;
    llama_seq_id                sequence_ = 0;
    llama_batch                 batch_{};
};

// On import, since llama_cpp passes structures by value whether a controller is attached or not.
void require_built_for_llama_cpp() {
    const std::string mismatch = llama_mismatch();
    if (mismatch.empty()) {
        return;
    }
    const std::string found = py::str(py::module_::import("llama_cpp").attr("__version__"));
    const std::string built = FFNSKIP_LLAMA_CPP_PYTHON_VERSION;
    throw py::import_error("ffnskip_cpp was " + mismatch + " (llama-cpp-python " + found + "). Install what it was built for:\n"
                           "  pip install llama-cpp-python==" + built + "\n"
                           "or build it again for what is there, in the folder of its source:\n"
                           "  pip install --force-reinstall --no-build-isolation --no-deps .");
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "FFN-SkipLLM for llama.cpp: the C++ core of ffnskip_cpp.";
    m.attr("__version__") = version();
    require_built_for_llama_cpp();

    py::register_exception<Unsupported>(m, "Unsupported", PyExc_ValueError);

    py::class_<Config>(m, "SkipConfig", "What to skip; see SkipConfig in the documentation.")
        .def(py::init(&make_config), py::arg("policy") = "ffn_skip", py::arg("sim_threshold") = 0.9f,
             py::arg("cold_s") = py::none(), py::arg("cold_e") = py::none(), py::arg("warm_up_index") = 30,
             py::arg("skip_ratio") = 0.25f, py::arg("max_skip") = py::none(), py::arg("layers") = py::none(),
             py::arg("seed") = 0, py::arg("layer_thresholds") = py::none(), py::arg("check_stride") = 1)
        .def_property_readonly("policy", [](const Config & c) { return policy_name(c.policy); })
        .def_readonly("sim_threshold", &Config::sim_threshold)
        .def_readonly("cold_s", &Config::cold_s)
        .def_readonly("cold_e", &Config::cold_e)
        .def_readonly("warm_up_index", &Config::warm_up_index)
        .def_readonly("skip_ratio", &Config::skip_ratio)
        .def_readonly("max_skip", &Config::max_skip)
        .def_property_readonly("layers", [](const Config & c) { return or_none(c.layers); })
        .def_readonly("seed", &Config::seed)
        .def_property_readonly("layer_thresholds", [](const Config & c) { return or_none(c.layer_thresholds); })
        .def_readonly("check_stride", &Config::check_stride)
        .def("__repr__", &config_repr)
        .def("__eq__", [](const Config & a, const py::object & b) {
            return py::isinstance<Config>(b) && config_state(a).equal(config_state(b.cast<const Config &>()));
        })
        .def("__hash__", [](const Config & c) { return py::hash(py::str(config_repr(c))); })
        .def(py::pickle(&config_state, [](const py::tuple & t) {
            return make_config(t[0].cast<std::string>(), t[1].cast<float>(), t[2].cast<std::optional<int>>(),
                               t[3].cast<std::optional<int>>(), t[4].cast<int>(), t[5].cast<float>(),
                               t[6].cast<std::optional<int>>(), t[7].cast<std::optional<std::vector<int>>>(),
                               t[8].cast<uint64_t>(), t[9].cast<std::optional<std::vector<float>>>(), t[10].cast<int>());
        }));

    py::class_<Profile>(m, "Profile", "Settings found for one model.")
        .def_readonly("path", &Profile::path)
        .def_readonly("model", &Profile::model)
        .def_readonly("config", &Profile::config);
    m.def("read_profile", &read_profile, py::arg("path"));
    m.def("profile_path", &profile_path, py::arg("model_path"));
    m.def("find_profile", [](uintptr_t model, const std::string & path) {
        return find_profile(pointer<llama_model>(model, "find_profile"), path);
    }, py::arg("model"), py::arg("model_path"));

    py::class_<Stats>(m, "SkipStats", "Counts over the generated tokens since the last reset.")
        .def_readonly("tokens", &Stats::tokens)
        .def_readonly("ffn_total", &Stats::ffn_total)
        .def_readonly("ffn_skipped", &Stats::ffn_skipped)
        .def_property_readonly("skip_ratio", &Stats::skip_ratio)
        .def_readonly("checks", &Stats::checks)
        .def_readonly("tokens_never_tripped", &Stats::tokens_never_tripped)
        .def_readonly("ffn_bytes_not_read", &Stats::ffn_bytes_not_read)
        .def_property_readonly("skipped_per_layer", [](const Stats & s) {
            return py::array_t<uint64_t>(py::ssize_t(s.skipped_per_layer.size()), s.skipped_per_layer.data());
        })
        .def("__repr__", [](const Stats & s) {
            return "SkipStats(tokens=" + std::to_string(s.tokens) + ", ffn_skipped=" + std::to_string(s.ffn_skipped) +
                   ", ffn_total=" + std::to_string(s.ffn_total) + ", skip_ratio=" + std::to_string(s.skip_ratio()) +
                   ", checks=" + std::to_string(s.checks) +
                   ", tokens_never_tripped=" + std::to_string(s.tokens_never_tripped) + ")";
        });

    py::class_<FfnWeight>(m, "FfnWeight", "A weight of an FFN block.")
        .def_readonly("name", &FfnWeight::name)
        .def_readonly("type", &FfnWeight::type)
        .def_readonly("n_elements", &FfnWeight::n_elements)
        .def_readonly("bytes", &FfnWeight::bytes);

    py::class_<FfnBlock>(m, "FfnBlock", "The FFN block of a layer.")
        .def_readonly("layer", &FfnBlock::layer)
        .def_readonly("skippable", &FfnBlock::skippable)
        .def_readonly("why_not", &FfnBlock::why_not)
        .def_readonly("kind", &FfnBlock::kind)
        .def_readonly("residual", &FfnBlock::residual)
        .def_readonly("bytes_per_token", &FfnBlock::bytes_per_token)
        .def_readonly("weights", &FfnBlock::weights)
        .def("__repr__", [](const FfnBlock & b) {
            return "FfnBlock(layer=" + std::to_string(b.layer) + ", kind='" + b.kind + "', residual='" + b.residual +
                   "', skippable=" + (b.skippable ? "True" : "False") + ", bytes_per_token=" +
                   std::to_string(b.bytes_per_token) + ")";
        });

    py::class_<PyController>(m, "Controller", "Skips FFN blocks in one llama.cpp context; see ffnskip/controller.h.")
        .def(py::init<>())
        .def_property_readonly("callback", &PyController::callback)
        .def_property_readonly("user_data", &PyController::user_data)
        .def("probe", [](PyController & c, uintptr_t ctx) { c.controller.probe(pointer<llama_context>(ctx, "probe")); },
             py::arg("ctx"))
        .def_property_readonly("n_layer", [](const PyController & c) { return c.controller.n_layer(); })
        .def_property_readonly("skippable", [](const PyController & c) {
            const auto & v = c.controller.skippable();
            py::array_t<bool> out(py::ssize_t(v.size()));
            std::copy(v.begin(), v.end(), out.mutable_data());
            return out;
        })
        .def_property_readonly("ffn_map", [](const PyController & c) { return c.controller.ffn_map(); })
        .def_property_readonly("fingerprint", [](const PyController & c) { return c.controller.fingerprint(); })
        .def("set_profile", [](PyController & c, const Profile & profile) { c.controller.set_profile(profile); },
             py::arg("profile"))
        .def_property("config", [](const PyController & c) { return c.controller.config(); },
                      [](PyController & c, const Config & config) { c.controller.set_config(config); })
        .def_property_readonly("resolved", [](const PyController & c) {
            const Settings & s = c.controller.settings();
            py::dict out;
            out["policy"]        = policy_name(s.policy);
            out["sim_threshold"] = c.controller.config().sim_threshold;
            out["cold_s"]        = s.cold_s;
            out["cold_e"]        = s.cold_e;
            out["warm_up_index"] = s.warm_up_index;
            out["max_skip"]      = s.max_skip;
            return out;
        })
        .def("decode", &PyController::decode, py::arg("ctx"), py::arg("tokens"), py::arg("position"),
             py::arg("kinds") = py::none(), py::arg("all_logits") = false)
        .def("decode_batch", &PyController::decode_batch, py::arg("ctx"), py::arg("batch"), py::arg("generated") = py::none())
        .def("step", &PyController::step, py::arg("ctx"), py::arg("sampler"), py::arg("token"), py::arg("position"))
        .def("set_reuse", [](PyController & c, bool full) { c.controller.set_reuse(full ? Reuse::full : Reuse::all); },
             py::arg("full"))
        .def("first_to_repeat", [](const PyController & c, int32_t end) { return c.controller.first_to_repeat(0, end); },
             py::arg("end"))
        .def("count_from_here", [](PyController & c) { c.controller.count_from_here(0); })
        .def("replaced", [](PyController & c) { c.controller.replaced(0); })
        .def("account", [](const PyController & c) { return py::bytes(c.controller.account(0)); })
        .def("restore", [](PyController & c, const std::string & account) { c.controller.restore(0, account); },
             py::arg("account"))
        .def("take_notice", [](PyController & c) { return c.controller.take_notice(); })
        .def("row_kind", [](const PyController & c, int64_t index) { return int(c.controller.row_kind(index)); },
             py::arg("generated_index"))
        .def_property_readonly("stats", [](const PyController & c) { return c.controller.stats(); })
        .def("reset_stats", [](PyController & c) { c.controller.reset_stats(); })
        .def("start_trace", [](PyController & c) { c.controller.start_trace(); })
        .def("stop_trace", [](PyController & c) {
            const Trace trace = c.controller.stop_trace();
            return py::make_tuple(array_2d(trace.similarity, trace.n_tokens, trace.n_layer), skipped_array(trace));
        });

    m.def("options", [] {
        std::vector<std::tuple<std::string, std::optional<std::string>, std::string>> out;
        for (const Option & option : options()) {
            out.emplace_back(option.name, option.value == nullptr ? std::nullopt : std::optional<std::string>(option.value),
                             option.help);
        }
        return out;
    });
    m.def("config_from_options", [](const std::vector<std::pair<std::string, std::string>> & values, Config config) {
        for (const auto & [name, value] : values) {
            set_option(config, name, value);
        }
        config.validate();
        return config;
    }, py::arg("values"), py::arg("base") = Config());
    m.def("environment_name", &environment_name, py::arg("option"));

    m.def("similarity", [](const py::array_t<float, py::array::c_style | py::array::forcecast> & h,
                           const py::array_t<float, py::array::c_style | py::array::forcecast> & f) {
        if (h.ndim() != 1 || f.ndim() != 1 || h.shape(0) != f.shape(0)) {
            throw py::value_error("similarity: two vectors of one length are needed");
        }
        return cosine<Pair::sum>(h.data(), f.data(), h.shape(0));
    }, py::arg("h"), py::arg("f"));
}
