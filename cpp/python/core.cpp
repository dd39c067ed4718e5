// The Python module ffnskip_cpp._core: translation only. The full documentation is in _core.pyi and the Python modules.
#include "ffnskip/ffnskip.h"
#include "model_stem.h"
#include "similarity.h"

#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace py = pybind11;
using namespace ffnskip;

namespace {

Config     to_config(py::handle from);
py::object to_python(const Config & config);

}  // namespace

// A Config is ffnskip_cpp.SkipConfig in Python.
template <> struct pybind11::detail::type_caster<Config> {
    PYBIND11_TYPE_CASTER(Config, const_name("ffnskip_cpp.skip_config.SkipConfig"));

    bool load(handle from, bool) {
        if (!isinstance(from, module_::import("ffnskip_cpp.skip_config").attr("SkipConfig"))) {
            return false;
        }
        value = to_config(from);
        return true;
    }

    static handle cast(const Config & config, return_value_policy, handle) { return to_python(config).release(); }
};

namespace {

py::array_t<bool> bools(const std::vector<uint8_t> & values) {
    py::array_t<bool> out(py::ssize_t(values.size()));
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
}

template <typename T> T * pointer(uintptr_t address, const char * what) {
    if (address == 0) {
        throw py::value_error(std::string(what) + ": the address is null; the model is closed");
    }
    return reinterpret_cast<T *>(address);
}

// A class of the Python package, which may not be imported yet when this module is.
py::object python_class(const char * module, const char * name) {
    return py::module_::import(module).attr(name);
}

// Value of a field of a SkipConfig. A whole number in the wrong range is a ValueError, what is no number a TypeError.
template <typename T> T field(py::handle config, const char * name, const char * wanted) {
    const py::object value = config.attr(name);
    try {
        return value.cast<T>();
    } catch (const py::cast_error &) {
        const std::string message  = std::string(name) + ": " + std::string(py::repr(value)) + " is not " + wanted;
        constexpr bool    is_whole = std::is_integral_v<T> || std::is_same_v<T, std::optional<int>>;
        if (is_whole && py::isinstance<py::int_>(value)) {
            throw py::value_error(message);
        }
        throw py::type_error(message);
    }
}

// The fields that are plain values: visit(name, field, what is wanted of it).
template <typename AnyConfig, typename Visit> void for_fields(AnyConfig & config, Visit visit) {
    visit("sim_threshold", config.sim_threshold, "a number");
    visit("cold_s", config.cold_s, "a whole number below 2**31, or None");
    visit("cold_e", config.cold_e, "a whole number below 2**31, or None");
    visit("warm_up_index", config.warm_up_index, "a whole number below 2**31");
    visit("skip_ratio", config.skip_ratio, "a number in [0, 1], or None");
    visit("max_skip", config.max_skip, "a whole number below 2**31, or None");
    visit("layers", config.layers, "a list of layers, or None");
    visit("attention_layers", config.attention_layers, "a list of layers, or None");
    visit("every_row", config.every_row, "True or False");
    visit("layer_thresholds", config.layer_thresholds, "a list of numbers, or None");
    visit("channel_thresholds", config.channel_thresholds, "a list of numbers, or None");
    visit("check_stride", config.check_stride, "a whole number below 2**31");
    visit("check_interval", config.check_interval, "a whole number below 2**31");
    visit("min_layers", config.min_layers, "a whole number below 2**31, or None");
    visit("budget_decay", config.budget_decay, "a whole number below 2**31");
    visit("seed", config.seed, "a whole number in [0, 2**64)");
}

Config to_config(py::handle from) {
    Config config;
    for_fields(config, [&](const char * name, auto & to, const char * wanted) {
        to = field<std::decay_t<decltype(to)>>(from, name, wanted);
    });
    config.region  = region_from_name(field<std::string>(from, "region", "the name of a region"));
    config.tensors = tensors_from_name(field<std::string>(from, "tensors", "\"ffn\" or \"all\""));
    set_policy(config, field<std::string>(from, "policy", "the name of a policy"));
    config.validate();
    return config;
}

// Without SkipConfig's constructor, which comes here.
py::object to_python(const Config & config) {
    py::dict fields(py::arg("policy") = policy_name(config.policy), py::arg("region") = region_name(config.region),
                    py::arg("tensors") = tensors_name(config.tensors));
    for_fields(config, [&](const char * name, const auto & value, const char *) {
        const py::object found = py::cast(value);
        fields[name]           = py::isinstance<py::list>(found) ? py::tuple(found) : found;
    });
    const py::object type = python_class("ffnskip_cpp.skip_config", "SkipConfig");
    py::object       made = type.attr("__new__")(type);
    made.attr("__dict__").attr("update")(fields);
    return made;
}

struct PreparedConfig {
    std::shared_ptr<const Controller::Prepared> settings;
};

// Addresses for llama_context_params, as attach() sets them.
llama_context_params attached(Controller & controller) {
    llama_context_params params = llama_context_default_params();
    controller.attach(params);
    return params;
}

const RowKind * row_kinds(const std::optional<std::vector<RowKind>> & kinds, size_t n_tokens) {
    if (kinds && kinds->size() != n_tokens) {
        throw py::value_error("kinds: " + std::to_string(kinds->size()) + " entries for " + std::to_string(n_tokens) +
                              " tokens");
    }
    return kinds ? kinds->data() : nullptr;
}

void require_rows(const std::vector<int32_t> & rows, size_t n_tokens) {
    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i] < (i == 0 ? 0 : rows[i - 1] + 1) || size_t(rows[i]) >= n_tokens) {
            throw py::value_error("rows: " + std::to_string(rows[i]) + " is out of order, or outside [0, " +
                                  std::to_string(n_tokens) + ")");
        }
    }
}

using Tokens = std::vector<llama_token>;

// Rows that follow are at `position` of sequence 0: what the memory holds from there is taken out.
void go_to(Session & session, int32_t position) {
    if (position < 0 || position > session.n_used()) {
        throw std::invalid_argument("position: " + std::to_string(position) + " is outside [0, " +
                                    std::to_string(session.n_used()) + "], which the memory holds");
    }
    session.cut(position);
}

// Tokens of sequence 0 from `position` on, in place of whatever the memory holds from there.
void decode(Session & session, const Tokens & tokens, int32_t position,
            const std::optional<std::vector<RowKind>> & kinds) {
    const RowKind *        rows = row_kinds(kinds, tokens.size());
    py::gil_scoped_release unlocked;
    go_to(session, position);
    if (rows == nullptr) {
        session.prompt(tokens.data(), tokens.size());
    } else {
        forward(session, tokens, rows, {}, nullptr);
    }
}

py::array_t<float> forward_rows(Session & session, const Tokens & tokens, int32_t position,
                                const std::optional<std::vector<RowKind>> & kinds, const std::vector<int32_t> & rows) {
    const RowKind * kind = row_kinds(kinds, tokens.size());
    require_rows(rows, tokens.size());
    py::array_t<float>     logits({ py::ssize_t(rows.size()), py::ssize_t(session.n_vocab()) });
    float *                to = logits.mutable_data();
    py::gil_scoped_release unlocked;
    go_to(session, position);
    forward(session, tokens, kind, rows, to);
    return logits;
}

llama_token step(Session & session, uintptr_t sampler_address, llama_token token, int32_t position) {
    auto *                 sampler = pointer<llama_sampler>(sampler_address, "step");
    py::gil_scoped_release unlocked;
    go_to(session, position);
    return session.step(sampler, token);
}

// Tokens after what a sequence holds: a prompt up to token n_prompt, and generated from there.
void prompt(Session & session, const Tokens & tokens, size_t n_prompt, int32_t seq) {
    n_prompt = std::min(n_prompt, tokens.size());
    py::gil_scoped_release unlocked;
    session.prompt(tokens.data(), n_prompt, seq);
    session.prompt(tokens.data() + n_prompt, tokens.size() - n_prompt, seq, Fed::generated);
}

llama_token sample(Session & session, uintptr_t sampler) {
    return llama_sampler_sample(pointer<llama_sampler>(sampler, "sample"), session.context(), -1);
}

Tokens step_all(Session & session, const std::vector<std::tuple<int32_t, llama_token, uintptr_t>> & turns) {
    std::vector<Session::Turn> each;
    for (const auto & [seq, token, sampler] : turns) {
        each.push_back({ seq, token, pointer<llama_sampler>(sampler, "step_all") });
    }
    Tokens                 next(each.size());
    py::gil_scoped_release unlocked;
    session.step(each, next.data());
    return next;
}

// Rows are (token, sequence, address of its sampler or 0, n_likeliest or None). A choice is (token, log-likelihood, likeliest,
// what the row left out), or the message of a sampler that failed.
py::list choose_tokens(Session & session,
                       const std::vector<std::tuple<llama_token, llama_seq_id, uintptr_t, std::optional<int>>> & rows,
                       bool generated) {
    std::vector<Row> wanted;
    for (const auto & [token, seq, sampler, n_likeliest] : rows) {
        wanted.push_back({ token, seq, reinterpret_cast<llama_sampler *>(sampler), n_likeliest });
    }
    const std::vector<Choice> choices = [&] {
        py::gil_scoped_release unlocked;
        return choose(session, wanted, generated ? Fed::generated : Fed::prompt);
    }();
    py::list out;
    for (const Choice & choice : choices) {
        if (!choice.error.empty()) {
            out.append(choice.error);
            continue;
        }
        const RowStats & left_out = choice.left_out;
        out.append(py::make_tuple(choice.token, choice.log_likelihood, choice.likeliest,
                                  py::make_tuple(left_out.may_skip, py::tuple(py::cast(left_out.ffn)),
                                                 py::tuple(py::cast(left_out.attention)), left_out.kept,
                                                 left_out.skip_ratio)));
    }
    return out;
}

// A llama_batch made elsewhere.
void decode_batch(Session & session, uintptr_t address, std::optional<bool> generated) {
    const llama_batch      batch = *pointer<llama_batch>(address, "decode_batch");
    const Fed              fed   = !generated ? Fed::recognise : *generated ? Fed::generated : Fed::prompt;
    py::gil_scoped_release unlocked;
    session.decode(batch, fed);
}

py::tuple score_arrays(Session & session, const Tokens & prefix, const std::vector<Tokens> & continuations,
                       std::optional<size_t> n_prompt) {
    const Scores scores = [&] {
        py::gil_scoped_release unlocked;
        return score(session, prefix, continuations, n_prompt);
    }();
    py::array_t<double> likelihood(py::ssize_t(scores.log_likelihood.size()), scores.log_likelihood.data());
    return py::make_tuple(likelihood, bools(scores.greedy), scores.n_evaluated);
}

// `told` is called with the share that is done.
void write_channels(const Controller & controller, const std::string & path, const std::string & tensors, int n_threads,
                    const py::function & told) {
    const auto progress = [&](double done) {
        const py::gil_scoped_acquire locked;
        if (PyErr_CheckSignals() != 0) {
            throw py::error_already_set();
        }
        told(done);
        return true;
    };
    try {
        const py::gil_scoped_release unlocked;
        controller.write_channels(path, tensors_from_name(tensors), n_threads, progress);
    } catch (const std::system_error & error) {
        errno = error.code().value();
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
        throw py::error_already_set();
    }
}

void raise(const char * name, const std::exception & error) {
    py::set_error(python_class("ffnskip_cpp.errors", name), error.what());
}

void translate(std::exception_ptr thrown) {
    try {
        std::rethrow_exception(thrown);
    } catch (const Unsupported & error) {
        raise("UnsupportedModelError", error);
    } catch (const ProfileMismatch & error) {
        raise("ProfileMismatchError", error);
    } catch (const DecodeError & error) {
        py::object exception = python_class("ffnskip_cpp.errors", "DecodeError")(error.what(), error.status);
        py::set_error(py::type::of(exception), exception);
    }
}

// On import, since llama_cpp passes structures by value whether a controller is attached or not.
void require_built_for_llama_cpp() {
    const std::string mismatch = llama_mismatch();
    if (mismatch.empty()) {
        return;
    }
    const std::string found = py::str(py::module_::import("llama_cpp").attr("__version__"));
    const std::string built = FFNSKIP_LLAMA_CPP_PYTHON_VERSION;
    throw py::import_error("ffnskip_cpp was " + mismatch + " (llama-cpp-python " + found +
                           "). Install what it was built for:\n"
                           "  pip install llama-cpp-python==" +
                           built +
                           "\n"
                           "or build it again for what is there, in the folder of its source:\n"
                           "  pip install --force-reinstall --no-build-isolation --no-deps .");
}

// ---- the module ----

void add_profile(py::module_ & m) {
    py::class_<Profile>(m, "Profile", "Settings found for one model.")
        .def_readonly("path", &Profile::path)
        .def_readonly("model", &Profile::model)
        .def_property_readonly("config", [](const Profile & profile) { return profile.config; });
    m.def("read_profile", &read_profile, py::arg("path"));
    m.def("profile_path", &profile_path, py::arg("model_path"));
    m.def("channel_file_path", &channel_file_path, py::arg("model_path"));
    m.def(
        "find_profile",
        [](uintptr_t model, const std::string & path) {
            return find_profile(pointer<llama_model>(model, "find_profile"), path);
        },
        py::arg("model"), py::arg("model_path"));
}

// [n_layer, 4]
py::array_t<uint64_t> by_input(const std::vector<uint64_t> & counts) {
    return py::array_t<uint64_t>({ py::ssize_t(counts.size() / 4), py::ssize_t(4) }, counts.data());
}

void add_stats(py::module_ & m) {
    py::class_<Stats>(m, "SkipStats", "Counts over the generated tokens since the last reset.")
        .def_readonly("tokens", &Stats::tokens)
        .def_readonly("ffn_total", &Stats::ffn_total)
        .def_readonly("ffn_skipped", &Stats::ffn_skipped)
        .def_property_readonly("skip_ratio", &Stats::skip_ratio)
        .def_readonly("checks", &Stats::checks)
        .def_readonly("tokens_never_tripped", &Stats::tokens_never_tripped)
        .def_readonly("ffn_bytes_not_read", &Stats::ffn_bytes_not_read)
        .def_property_readonly("skipped_per_layer",
                               [](const Stats & s) {
                                   return py::array_t<uint64_t>(py::ssize_t(s.skipped_per_layer.size()),
                                                                s.skipped_per_layer.data());
                               })
        .def_readonly("attention_total", &Stats::attention_total)
        .def_readonly("attention_skipped", &Stats::attention_skipped)
        .def_readonly("attention_bytes_not_read", &Stats::attention_bytes_not_read)
        .def_property_readonly("attention_skipped_per_layer",
                               [](const Stats & s) {
                                   return py::array_t<uint64_t>(py::ssize_t(s.attention_skipped_per_layer.size()),
                                                                s.attention_skipped_per_layer.data());
                               })
        .def_readonly("bytes_total", &Stats::bytes_total)
        .def_readonly("bytes_left_out", &Stats::bytes_left_out)
        .def_property_readonly("channels_total", [](const Stats & s) { return by_input(s.channels_total); })
        .def_property_readonly("channels_kept", [](const Stats & s) { return by_input(s.channels_kept); })
        .def("__repr__", [](const Stats & s) {
            return "SkipStats(tokens=" + std::to_string(s.tokens) + ", ffn_skipped=" + std::to_string(s.ffn_skipped) +
                   ", ffn_total=" + std::to_string(s.ffn_total) + ", skip_ratio=" + std::to_string(s.skip_ratio()) +
                   ", checks=" + std::to_string(s.checks) +
                   ", tokens_never_tripped=" + std::to_string(s.tokens_never_tripped) +
                   (s.attention_skipped == 0 ? std::string()
                                             : ", attention_skipped=" + std::to_string(s.attention_skipped) +
                                                   ", attention_total=" + std::to_string(s.attention_total)) +
                   (s.bytes_total == 0 ? std::string()
                                       : ", bytes_left_out=" + std::to_string(s.bytes_left_out) +
                                             ", bytes_total=" + std::to_string(s.bytes_total)) +
                   ")";
        });
}

void add_reaches(py::module_ & m) {
    m.def("reach_edges", [] {
        const std::vector<float> edges = reach_edges();
        return py::array_t<float>(py::ssize_t(edges.size()), edges.data());
    });
}

void add_blocks(py::module_ & m) {
    py::class_<BlockWeight>(m, "BlockWeight", "A weight of a block.")
        .def_readonly("name", &BlockWeight::name)
        .def_readonly("type", &BlockWeight::type)
        .def_readonly("n_elements", &BlockWeight::n_elements)
        .def_readonly("bytes", &BlockWeight::bytes);

    const auto kind = [](const Block & block) { return k_block_kind_names[size_t(block.kind)]; };
    py::class_<Block>(m, "Block", "An attention or FFN block of a layer.")
        .def_readonly("layer", &Block::layer)
        .def_property_readonly("kind", kind)
        .def_readonly("skippable", &Block::skippable)
        .def_readonly("why_not", &Block::why_not)
        .def_readonly("form", &Block::form)
        .def_readonly("residual", &Block::residual)
        .def_readonly("bytes_per_token", &Block::bytes_per_token)
        .def_readonly("bytes_of_cache", &Block::bytes_of_cache)
        .def_readonly("weights", &Block::weights)
        .def("__repr__", [kind](const Block & b) {
            return "Block(layer=" + std::to_string(b.layer) + ", kind='" + kind(b) + "', form='" + b.form +
                   "', residual='" + b.residual + "', skippable=" + (b.skippable ? "True" : "False") +
                   ", bytes_per_token=" + std::to_string(b.bytes_per_token) + ")";
        });
}

void add_layer_inputs(py::module_ & m) {
    py::class_<LayerInput>(m, "LayerInput", "An input of matrices of a layer, whose channels may be left out.")
        .def_readonly("layer", &LayerInput::layer)
        .def_readonly("kind", &LayerInput::kind)
        .def_readonly("why_not", &LayerInput::why_not)
        .def_readonly("n_channels", &LayerInput::n_channels)
        .def_readonly("bytes", &LayerInput::bytes)
        .def_readonly("bytes_per_token", &LayerInput::bytes_per_token)
        .def_readonly("weights", &LayerInput::weights)
        .def("__repr__", [](const LayerInput & input) {
            return "LayerInput(layer=" + std::to_string(input.layer) + ", kind='" + input.kind +
                   "', n_channels=" + std::to_string(input.n_channels) + ", bytes=" + std::to_string(input.bytes) + ")";
        });
}

void add_controller(py::module_ & m) {
    m.attr("CHANNEL_TOKENS") = k_channel_tokens;

    py::class_<PreparedConfig>(m, "PreparedConfig", "Settings for one model, to be used in turns.");

    py::class_<Controller>(m, "Controller", "Skips FFN blocks in one llama.cpp context; see ffnskip/controller.h.")
        .def(py::init<>())
        .def_property_readonly("callback", [](Controller & c) { return uintptr_t(attached(c).cb_eval); })
        .def_property_readonly("user_data", [](Controller & c) { return uintptr_t(attached(c).cb_eval_user_data); })
        .def(
            "probe", [](Controller & c, uintptr_t ctx) { c.probe(pointer<llama_context>(ctx, "probe")); },
            py::arg("ctx"))
        .def(
            "hook", [](Controller & c, uintptr_t ctx) { c.hook(pointer<llama_context>(ctx, "hook")); }, py::arg("ctx"))
        .def_property_readonly("hooked", &Controller::hooked)
        .def_property_readonly("n_layer", &Controller::n_layer)
        .def_property_readonly("skippable", [](const Controller & c) { return bools(c.skippable()); })
        .def_property_readonly("blocks", [](const Controller & c) { return c.blocks(); })
        .def_property_readonly("channel_inputs", &Controller::channel_inputs)
        .def_property_readonly("fingerprint", &Controller::fingerprint)
        .def(
            "set_weights_source",
            [](Controller & c, const std::string & model_path, int n_threads, std::function<bool(double)> progress) {
                c.set_weights_source({ model_path, n_threads, std::move(progress) });
            },
            py::arg("model_path"), py::arg("n_threads") = 0, py::arg("progress") = py::none())
        .def_property_readonly("weights_bytes", &Controller::weights_bytes)
        .def_property_readonly("mapped_weights_bytes", &Controller::mapped_weights_bytes)
        .def("release_weights", &Controller::release_weights)
        .def_property_readonly("weights_notes", &Controller::weights_notes)
        .def("write_channels", &write_channels, py::arg("path"), py::arg("tensors"), py::arg("n_threads"),
             py::arg("told"))
        .def("set_profile", &Controller::set_profile, py::arg("profile"), py::call_guard<py::gil_scoped_release>())
        .def_property(
            "config", [](const Controller & c) { return c.config(); },
            [](Controller & c, const Config & config) {
                py::gil_scoped_release unlocked;
                c.set_config(config);
            })
        .def(
            "prepare", [](const Controller & c, const Config & config) { return PreparedConfig{ c.prepare(config) }; },
            py::arg("config"))
        .def(
            "use", [](Controller & c, const PreparedConfig & prepared) { c.use(*prepared.settings); },
            py::arg("settings"))
        .def_property_readonly(
            "resolved",
            [](const Controller & c) {
                const Settings & s = c.settings();
                return py::dict(py::arg("policy")        = policy_name(s.policy),
                                py::arg("sim_threshold") = c.config().sim_threshold, py::arg("cold_s") = s.cold_s,
                                py::arg("cold_e") = s.cold_e, py::arg("warm_up_index") = s.warm_up_index,
                                py::arg("max_skip") = s.max_skip, py::arg("min_layers") = s.n_layer() - s.max_left_out);
            })
        .def(
            "set_reuse", [](Controller & c, bool full) { c.set_reuse(full ? Reuse::full : Reuse::all); },
            py::arg("full"))
        .def(
            "first_to_repeat",
            [](const Controller & c, int32_t end, llama_seq_id seq) { return c.first_to_repeat(seq, end); },
            py::arg("end"), py::arg("seq") = 0)
        .def(
            "n_may_skip",
            [](const Controller & c, int32_t begin, int32_t end, int32_t n_prompt) {
                int64_t n = 0;
                for (int32_t position = begin; position < end; ++position) {
                    n += c.settings().may_skip(position, n_prompt);
                }
                return n;
            },
            py::arg("begin"), py::arg("end"), py::arg("n_prompt"))
        .def(
            "count_from_here", [](Controller & c, llama_seq_id seq) { c.count_from_here(seq); }, py::arg("seq") = 0)
        .def("replaced", [](Controller & c) { c.replaced(0); })
        .def("account", [](const Controller & c) { return py::bytes(c.account(0)); })
        .def(
            "restore", [](Controller & c, const std::string & account) { c.restore(0, account); }, py::arg("account"))
        .def("take_notice", &Controller::take_notice)
        .def_property_readonly("stats", &Controller::stats)
        .def("reset_stats", &Controller::reset_stats)
        .def_property_readonly("input_bytes",
                               [](const Controller & c) {
                                   std::vector<uint64_t> flat;
                                   for (const Controller::InputBytes & bytes : c.input_bytes()) {
                                       flat.insert(flat.end(), { bytes.least, bytes.all });
                                   }
                                   const py::ssize_t n_layer = py::ssize_t(flat.size() / 8);
                                   return py::array_t<uint64_t>({ n_layer, py::ssize_t(4), py::ssize_t(2) },
                                                                flat.data());
                               })
        .def("start_trace", &Controller::start_trace, py::arg("reaches") = false, py::arg("layers") = false)
        .def("stop_trace", [](Controller & c) {
            const Trace                    trace = c.stop_trace();
            const std::vector<py::ssize_t> shape = { trace.n_tokens, trace.n_layer };
            py::array_t<float>             similarity(py::ssize_t(trace.similarity.size()), trace.similarity.data());
            const py::ssize_t              n_kept = trace.kept.empty() ? 0 : trace.n_tokens;
            py::array_t<float>    kept({ n_kept, py::ssize_t(trace.n_layer), py::ssize_t(4) }, trace.kept.data());
            const py::ssize_t     n_bins    = py::ssize_t(reach_edges().size()) - 1;
            const py::ssize_t     n_counted = trace.reaches.empty() ? 0 : trace.n_layer;
            py::array_t<uint64_t> reaches({ n_counted, py::ssize_t(4), n_bins }, trace.reaches.data());
            const py::ssize_t     n_passed = trace.layer_similarity.empty() ? 0 : trace.n_tokens;
            py::array_t<float>    layers({ n_passed, n_passed == 0 ? 0 : py::ssize_t(trace.n_layer) },
                                         trace.layer_similarity.data());
            return py::make_tuple(similarity.reshape(shape), bools(trace.skipped).reshape(shape),
                                  bools(trace.attention_skipped).reshape(shape), kept, reaches, layers);
        });
}

void add_session(py::module_ & m) {
    py::native_enum<RowKind>(m, "RowKind", "enum.IntEnum", "What a row of a batch is.")
        .value("prompt", RowKind::prompt)
        .value("warm_up", RowKind::warm_up)
        .value("skippable", RowKind::skippable)
        .finalize();

    py::class_<Session>(m, "Session", "Sequences of a llama.cpp context; see ffnskip/session.h.")
        .def(py::init([](uintptr_t ctx, Controller * controller) {
                 return Session(pointer<llama_context>(ctx, "Session"), controller);
             }),
             py::arg("ctx"), py::arg("controller"), py::keep_alive<1, 3>())
        .def("decode", &decode, py::arg("tokens"), py::arg("position"), py::arg("kinds") = py::none())
        .def("forward", &forward_rows, py::arg("tokens"), py::arg("position"), py::arg("kinds"), py::arg("rows"))
        .def("score", &score_arrays, py::arg("prefix"), py::arg("continuations"), py::arg("n_prompt") = py::none())
        .def_property_readonly("n_sequences", &Session::n_sequences)
        .def("n_used", &Session::n_used, py::arg("seq"))
        .def(
            "keep",
            [](Session & session, const Tokens & tokens, size_t n_prompt) {
                return session.keep(tokens.data(), tokens.size(), n_prompt);
            },
            py::arg("tokens"), py::arg("n_prompt"))
        .def("prompt", &prompt, py::arg("tokens"), py::arg("n_prompt"), py::arg("seq"))
        .def("sample", &sample, py::arg("sampler"))
        .def("step_all", &step_all, py::arg("turns"))
        .def("copy", &Session::copy, py::arg("source"), py::arg("to"))
        .def("cut", &Session::cut, py::arg("position"), py::arg("seq"))
        .def("clear", &Session::clear)
        .def("step", &step, py::arg("sampler"), py::arg("token"), py::arg("position"))
        .def("choose", &choose_tokens, py::arg("rows"), py::arg("generated"))
        .def("go_back", &Session::go_back, py::arg("position"), py::arg("seq"))
        .def("decode_batch", &decode_batch, py::arg("batch"), py::arg("generated") = py::none());
}

void add_options(py::module_ & m) {
    m.def("canonical", [](const Config & config) { return config; }, py::arg("config"));

    m.def("options", [] {
        std::vector<std::tuple<std::string, std::optional<std::string>, std::string>> out;
        for (const Option & option : options()) {
            out.emplace_back(option.name,
                             option.value == nullptr ? std::nullopt : std::optional<std::string>(option.value),
                             option.help);
        }
        return out;
    });
    m.def(
        "config_from_options",
        [](const std::vector<std::pair<std::string, std::string>> & values, Config config) {
            for (const auto & [name, value] : values) {
                set_option(config, name, value);
            }
            config.validate();
            return config;
        },
        py::arg("values"), py::arg("base"));
    m.def("environment_name", &environment_name, py::arg("option"));
}

void add_similarity(py::module_ & m) {
    m.def(
        "similarity",
        [](const py::array_t<float, py::array::c_style | py::array::forcecast> & h,
           const py::array_t<float, py::array::c_style | py::array::forcecast> & f) {
            if (h.ndim() != 1 || f.ndim() != 1 || h.shape(0) != f.shape(0)) {
                throw py::value_error("similarity: two vectors of one length are needed");
            }
            return cosine<Pair::sum>(h.data(), f.data(), h.shape(0));
        },
        py::arg("h"), py::arg("f"));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc()               = "FFN-SkipLLM for llama.cpp: the C++ core of ffnskip_cpp.";
    m.attr("__version__") = version();
    require_built_for_llama_cpp();
    py::register_exception_translator(&translate);
    add_profile(m);
    add_stats(m);
    add_reaches(m);
    add_blocks(m);
    add_layer_inputs(m);
    add_controller(m);
    add_session(m);
    add_options(m);
    add_similarity(m);
    m.def("add_rpc_servers", &add_rpc_servers, py::arg("endpoints"), py::call_guard<py::gil_scoped_release>());
}
