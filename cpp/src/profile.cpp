#include "ffnskip/profile.h"

#include "gguf_header.h"
#include "model_stem.h"

#include <gguf.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <system_error>

namespace ffnskip {
namespace {

// The metadata of a file; every failure says which key is to blame.
class Reader {
public:
    explicit Reader(const std::string & path) : file_(read_gguf_header(path).keys) {}

    bool        has(const char * key) const { return gguf_find_key(file_.get(), key) >= 0; }
    std::string text(const char * key) const { return gguf_get_val_str(file_.get(), find(key, GGUF_TYPE_STRING)); }
    int    count(const char * key) const { return int(gguf_get_val_u32(file_.get(), find(key, GGUF_TYPE_UINT32))); }
    double number(const char * key) const {
        const bool single = gguf_get_kv_type(file_.get(), find(key)) == GGUF_TYPE_FLOAT32;
        return single ? decimal(gguf_get_val_f32(file_.get(), find(key)))
                      : gguf_get_val_f64(file_.get(), find(key, GGUF_TYPE_FLOAT64));
    }

    bool flag(const char * key) const { return has(key) && gguf_get_val_bool(file_.get(), find(key, GGUF_TYPE_BOOL)); }

    std::vector<int>    counts(const char * key) const { return list<uint32_t, int>(key, GGUF_TYPE_UINT32); }
    std::vector<double> numbers(const char * key) const {
        const int64_t id = find(key, GGUF_TYPE_ARRAY);
        if (gguf_get_arr_type(file_.get(), id) != GGUF_TYPE_FLOAT32) {
            return list<double, double>(key, GGUF_TYPE_FLOAT64);
        }
        std::vector<double> numbers = list<float, double>(key, GGUF_TYPE_FLOAT32);
        std::transform(numbers.begin(), numbers.end(), numbers.begin(), [](double x) { return decimal(float(x)); });
        return numbers;
    }

private:
    [[noreturn]] static void refuse(const std::string & why) { throw std::invalid_argument(why); }

    // Older versions wrote float32: 0.9, which was meant, in place of 0.8999999761581421.
    static double decimal(float value) {
        char text[32];
        for (int digits = 6; digits <= 9; ++digits) {
            std::snprintf(text, sizeof(text), "%.*g", digits, double(value));
            if (std::strtof(text, nullptr) == value) {
                break;
            }
        }
        return std::strtod(text, nullptr);
    }

    int64_t find(const char * key) const {
        const int64_t id = gguf_find_key(file_.get(), key);
        if (id < 0) {
            refuse("has no " + std::string(key));
        }
        return id;
    }

    int64_t find(const char * key, gguf_type type) const {
        const int64_t id = find(key);
        if (gguf_get_kv_type(file_.get(), id) != type) {
            refuse(std::string(key) + " is a " + gguf_type_name(gguf_get_kv_type(file_.get(), id)) + ", not a " +
                   gguf_type_name(type));
        }
        return id;
    }

    template <typename Stored, typename Value> std::vector<Value> list(const char * key, gguf_type type) const {
        const int64_t id = find(key, GGUF_TYPE_ARRAY);
        if (gguf_get_arr_type(file_.get(), id) != type) {
            refuse(std::string(key) + " is no list of " + gguf_type_name(type));
        }
        const auto * values = static_cast<const Stored *>(gguf_get_arr_data(file_.get(), id));
        return std::vector<Value>(values, values + gguf_get_arr_n(file_.get(), id));
    }

    std::unique_ptr<gguf_context, FreeGguf> file_;
};

// The blocks beside `layers`.
void read_blocks(Config & config, const Reader & reader) {
    if (reader.has("ffnskip.max_skip")) {
        config.max_skip = reader.count("ffnskip.max_skip");
    }
    if ((config.layers || config.attention_layers) && config.max_skip == 0) {  // nothing is checked
        return;
    }
    if (config.layer_thresholds || reader.has("ffnskip.layer_thresholds")) {
        config.layer_thresholds = reader.numbers("ffnskip.layer_thresholds");
    } else {
        config.sim_threshold = reader.number("ffnskip.sim_threshold");
    }
    const auto count_or_1 = [&](const char * key) { return reader.has(key) ? reader.count(key) : 1; };
    config.cold_s         = reader.count("ffnskip.cold_s");
    config.cold_e         = reader.count("ffnskip.cold_e");
    config.max_skip       = reader.count("ffnskip.max_skip");
    config.check_stride   = count_or_1("ffnskip.check_stride");
    config.check_interval = count_or_1("ffnskip.check_interval");
}

// With thresholds ffnskip.skip_ratio is what they were measured to leave out, else what is wanted.
void read_channels(Config & config, const Reader & reader) {
    if (reader.has("ffnskip.channel_thresholds")) {
        config.channel_thresholds = reader.numbers("ffnskip.channel_thresholds");
    } else {
        config.skip_ratio = reader.number("ffnskip.skip_ratio");
        config.tensors    = tensors_from_name(reader.text("ffnskip.tensors"));
    }
    if (reader.has("ffnskip.cold_s")) {
        config.cold_s = reader.count("ffnskip.cold_s");
    }
    if (reader.has("ffnskip.cold_e")) {
        config.cold_e = reader.count("ffnskip.cold_e");
    }
}

void read_budget(Config & config, const Reader & reader) {
    config.cold_s       = reader.count("ffnskip.cold_s");
    config.cold_e       = reader.count("ffnskip.cold_e");
    config.min_layers   = reader.count("ffnskip.min_layers");
    config.budget_decay = reader.count("ffnskip.budget_decay");
}

}  // namespace

Profile read_profile(const std::string & path) {
    try {
        const Reader reader(path);
        Profile      profile;
        Config &     config = profile.config;
        profile.path        = path;
        profile.model       = reader.text("ffnskip.model");

        set_policy(config, reader.text("ffnskip.policy"));
        if (config.layers || reader.has("ffnskip.layers")) {
            config.layers = reader.counts("ffnskip.layers");
        }
        if (reader.has("ffnskip.attention_layers")) {
            config.attention_layers = reader.counts("ffnskip.attention_layers");
        }
        config.every_row = reader.flag("ffnskip.every_row");
        config.policy == Policy::channels      ? read_channels(config, reader)
        : config.policy == Policy::skip_decode ? read_budget(config, reader)
                                               : read_blocks(config, reader);
        config.warm_up_index = reader.count("ffnskip.warm_up_index");
        config.validate();
        return profile;
    } catch (const std::invalid_argument & error) {
        throw std::invalid_argument("profile " + path + ": " + error.what());
    }
}

std::string profile_path(const std::string & model_path) {
    return model_stem(model_path) + ".ffnskip.gguf";
}

std::optional<Profile> find_profile(const llama_model * model, const std::string & model_path) {
    const std::string beside = profile_path(model_path);
    std::error_code   none;
    if (std::filesystem::exists(beside, none)) {  // and is refused where it can't be read
        return read_profile(beside);
    }
    char text[2];  // only whether it is there; what libllama keeps of the metadata has no lists
    if (llama_model_meta_val_str(model, "ffnskip.model", text, sizeof(text)) >= 0) {
        return read_profile(model_path);
    }
    return std::nullopt;
}

}  // namespace ffnskip
