#include "ffnskip/profile.h"

#include <ggml.h>
#include <gguf.h>

#include <fstream>
#include <memory>
#include <stdexcept>

namespace ffnskip {
namespace {

struct Free {
    void operator()(gguf_context * file) const { gguf_free(file); }
};

using File = std::unique_ptr<gguf_context, Free>;

// The metadata of one profile; every failure names the file and the key.
class Reader {
public:
    explicit Reader(const std::string & path) : path_(path) {
        // gguf_init_from_file writes its complaints to the log, and these two are the usual ones.
        char magic[4] = {};
        if (!std::ifstream(path, std::ios::binary).read(magic, sizeof(magic))) {
            refuse("can't be read");
        }
        if (std::string(magic, sizeof(magic)) != "GGUF") {
            refuse("is no GGUF file");
        }
        file_.reset(gguf_init_from_file(path.c_str(), { true, nullptr }));
        if (file_ == nullptr) {
            refuse("is truncated or damaged");
        }
    }

    std::string text(const char * key) const { return gguf_get_val_str(file_.get(), find(key, GGUF_TYPE_STRING)); }
    int         count(const char * key) const { return int(gguf_get_val_u32(file_.get(), find(key, GGUF_TYPE_UINT32))); }
    float       number(const char * key) const { return gguf_get_val_f32(file_.get(), find(key, GGUF_TYPE_FLOAT32)); }

    std::vector<int> list(const char * key) const {
        const int64_t id = find(key, GGUF_TYPE_ARRAY);
        if (gguf_get_arr_type(file_.get(), id) != GGUF_TYPE_UINT32) {
            refuse(std::string(key) + " is no list of uint32");
        }
        const auto * values = static_cast<const uint32_t *>(gguf_get_arr_data(file_.get(), id));
        return std::vector<int>(values, values + gguf_get_arr_n(file_.get(), id));
    }

private:
    [[noreturn]] void refuse(const std::string & why) const { throw std::invalid_argument("profile " + path_ + ": " + why); }

    int64_t find(const char * key, gguf_type type) const {
        const int64_t id = gguf_find_key(file_.get(), key);
        if (id < 0) {
            refuse("has no " + std::string(key));
        }
        if (gguf_get_kv_type(file_.get(), id) != type) {
            refuse(std::string(key) + " is a " + gguf_type_name(gguf_get_kv_type(file_.get(), id)) + ", not a " +
                   gguf_type_name(type));
        }
        return id;
    }

    std::string path_;
    File        file_;
};

}  // namespace

Profile read_profile(const std::string & path) {
    const Reader reader(path);
    Profile      profile;
    profile.model         = reader.text("ffnskip.model");
    profile.config.policy = policy_from_name(reader.text("ffnskip.policy"));
    if (profile.config.policy == Policy::fixed) {
        profile.config.layers = reader.list("ffnskip.layers");
    } else {
        profile.config.sim_threshold = reader.number("ffnskip.sim_threshold");
        profile.config.cold_s        = reader.count("ffnskip.cold_s");
        profile.config.cold_e        = reader.count("ffnskip.cold_e");
        profile.config.max_skip      = reader.count("ffnskip.max_skip");
    }
    profile.config.warm_up_index = reader.count("ffnskip.warm_up_index");
    profile.config.validate();
    return profile;
}

}  // namespace ffnskip
