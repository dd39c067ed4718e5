// Where weights by channel come from: memory, the model's file or files, a file of their own. The rows they are compared
// with are those that ggml reads from the model's file.
#include "channels/available_memory.h"
#include "channels/channel_file.h"
#include "channels/channel_memory.h"
#include "channels/channel_store.h"
#include "channels/channel_weights.h"
#include "channels/model_file.h"
#include "expect.h"
#include "ffnskip/errors.h"
#include "model_stem.h"

#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <gguf.h>
#include <llama-cpp.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace ffnskip;

namespace {

namespace fs = std::filesystem;

template <typename Error = Unsupported>
void expect_error(const std::function<void()> & action, const std::vector<std::string> & named) {
    try {
        action();
    } catch (const Error & error) {
        for (const std::string & text : named) {
            expect(std::string(error.what()).find(text) != std::string::npos, "names " + text + ": " + error.what());
        }
        return;
    }
    expect(false, "refused: " + named.at(0));
}

// A folder that is gone at the end.
struct Folder {
    Folder() : path(fs::temp_directory_path() / ("ffnskip-" + std::to_string(std::rand()) + "-channel-store")) {
        fs::create_directories(path);
    }
    ~Folder() { fs::remove_all(path); }

    std::string operator/(const char * name) const { return (path / name).string(); }

    fs::path path;
};

void write(const std::string & path, const std::string & text) {
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << text;
}

std::string content(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(file), {} };
}

// ---- models ----

void quantize(const std::string & from, const std::string & to, llama_ftype type) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = type;
    params.allow_requantize            = true;
    params.pure                        = true;
    params.nthread                     = 1;
    expect(llama_model_quantize(from.c_str(), to.c_str(), &params) == 0, "quantised: " + to);
}

struct File {
    explicit File(const std::string & path) {
        ggml_context * with_data = nullptr;
        keys.reset(gguf_init_from_file(path.c_str(), { false, &with_data }));
        tensors.reset(with_data);
    }

    gguf_context_ptr keys;
    ggml_context_ptr tensors;
};

// The same model in three files, a third of the tensors each.
std::string split(const std::string & from, const Folder & folder) {
    constexpr int k_files = 3;
    const File    whole(from);
    const int64_t n_tensors = gguf_get_n_tensors(whole.keys.get());
    std::string   first;
    for (int number = 0; number < k_files; ++number) {
        const gguf_context_ptr part(gguf_init_empty());
        if (number == 0) {
            gguf_set_kv(part.get(), whole.keys.get());
        }
        gguf_set_val_u16(part.get(), "split.no", uint16_t(number));
        gguf_set_val_u16(part.get(), "split.count", k_files);
        gguf_set_val_i32(part.get(), "split.tensors.count", int32_t(n_tensors));
        for (int64_t i = n_tensors * number / k_files; i < n_tensors * (number + 1) / k_files; ++i) {
            gguf_add_tensor(part.get(),
                            ggml_get_tensor(whole.tensors.get(), gguf_get_tensor_name(whole.keys.get(), i)));
        }
        char name[32];
        std::snprintf(name, sizeof(name), "split-%05d-of-%05d.gguf", number + 1, k_files);
        gguf_write_to_file(part.get(), (folder / name).c_str(), false);
        first = number == 0 ? folder / name : first;
    }
    return first;
}

// A model in memory, and the tensors that its graph reads.
struct Loaded {
    Loaded(const std::string & path, bool repacked) : path(path) {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers       = 0;
        params.use_extra_bufts    = repacked;
        model.reset(llama_model_load_from_file(path.c_str(), params));
        llama_context_params options = llama_context_default_params();
        options.n_ctx                = 64;
        options.n_threads            = 1;
        options.cb_eval              = [](ggml_tensor * node, bool, void * self) {
            static_cast<Loaded *>(self)->see(node);
            return false;
        };
        options.cb_eval_user_data = this;
        const llama_context_ptr context(llama_init_from_model(model.get(), options));
        llama_token             token = 5;
        expect(llama_decode(context.get(), llama_batch_get_one(&token, 1)) == 0, "decoded");
        expect(!weights.empty() && !vectors.empty(), "weights and vectors were seen");
    }

    void see(const ggml_tensor * node) {
        for (const ggml_tensor * source : node->src) {
            if (source == nullptr || std::strncmp(source->name, "blk.", 4) != 0) {
                continue;
            }
            auto & list = ggml_nrows(source) > 1 ? weights : vectors;
            if (std::find(list.begin(), list.end(), source) == list.end()) {
                list.push_back(source);
            }
        }
    }

    ChannelStore::Wanted wanted() const {
        ChannelStore::Wanted wanted;
        wanted.weights     = weights;
        wanted.vectors     = vectors;
        wanted.fingerprint = "tiny";
        wanted.model_path  = path;
        wanted.n_threads   = 2;
        return wanted;
    }

    std::string                      path;
    llama_model_ptr                  model;
    std::vector<const ggml_tensor *> weights, vectors;
};

bool is_repacked(const Loaded & loaded) {
    return std::any_of(loaded.weights.begin(), loaded.weights.end(),
                       [](const ggml_tensor * weight) { return !ggml_backend_buffer_is_host(weight->buffer); });
}

// The bytes by channel of a tensor with data; of one expert's matrix.
std::vector<uint8_t> by_channel(const ggml_tensor * tensor, int64_t expert = 0) {
    const ChannelLayout layout(tensor->type, tensor->ne[0], tensor->ne[1]);
    ChannelMemory       memory(size_t(layout.bytes()));
    const char *        matrix = static_cast<const char *>(tensor->data) + size_t(expert) * tensor->nb[2];
    build_channels(
        layout,
        [&](int64_t first, int64_t n, uint8_t * to) {
            std::memcpy(to, matrix + size_t(first) * tensor->nb[1], size_t(n) * tensor->nb[1]);
        },
        1, memory.data());
    return { memory.data(), memory.data() + layout.bytes() };
}

void expect_copies(const ChannelStore & store, const Loaded & loaded, const File & file, const std::string & what) {
    bool right = true;
    for (const ggml_tensor * weight : loaded.weights) {
        const ChannelMatrix &      matrix   = store.matrix(weight);
        const std::vector<uint8_t> expected = by_channel(ggml_get_tensor(file.tensors.get(), weight->name));
        right = right && reinterpret_cast<uintptr_t>(matrix.data) % 64 == 0 &&
                matrix.layout.format->type == weight->type && matrix.layout.bytes() == int64_t(expected.size()) &&
                std::memcmp(matrix.data, expected.data(), expected.size()) == 0;
    }
    expect(right, what + ": the copies are those of the file's rows");
}

// ---- tests ----

void from_memory(const std::string & path) {
    const Loaded loaded(path, false);
    const File   file(path);
    const auto   store  = ChannelStore::of(loaded.model.get());
    auto         wanted = loaded.wanted();
    wanted.model_path   = "";
    wanted.vectors      = {};
    std::vector<double> told;
    wanted.progress = [&](double done) {
        told.push_back(done);
        return true;
    };
    store->add(wanted);
    expect_copies(*store, loaded, file, "from memory");
    expect(told.size() == loaded.weights.size() + 1 && std::is_sorted(told.begin(), told.end()) && told.front() == 0 &&
               told.back() == 1,
           "progress from 0 to 1");

    uint64_t least = 0;
    for (const ggml_tensor * weight : loaded.weights) {
        least += uint64_t(store->matrix(weight).layout.bytes());
    }
    expect(store->bytes() >= least && store->bytes() < least + 64 * loaded.weights.size(), "memory taken is told");

    const ChannelMatrix * before = &store->matrix(loaded.weights[0]);
    const uint64_t        bytes  = store->bytes();
    told.clear();
    store->add(wanted);
    expect(told.empty() && store->bytes() == bytes && before == &store->matrix(loaded.weights[0]),
           "what is there is not made again");
    expect(ChannelStore::of(loaded.model.get()) == store, "one store for a model");
}

void from_file(const std::string & path, const std::string & first_of_split) {
    for (const std::string & named : { path, first_of_split }) {
        const Loaded loaded(named, true);
        if (!is_repacked(loaded)) {
            std::printf("%s: this CPU repacks nothing; the file is not read\n", named.c_str());
        }
        const auto store = ChannelStore::of(loaded.model.get());
        store->add(loaded.wanted());
        expect_copies(*store, loaded, File(path), "repacked " + named);
    }
}

// Nothing is stored by a model's name or place alone.
void other_files(const std::string & path, const std::string & other, const std::string & other_type,
                 const std::string & first_of_split, const Folder & folder) {
    const Loaded loaded(path, true);
    if (!is_repacked(loaded)) {
        return;
    }
    const auto store = ChannelStore::of(loaded.model.get());
    const auto add   = [&](const std::string & from) {
        auto wanted       = loaded.wanted();
        wanted.model_path = from;
        store->add(wanted);
    };
    const std::string bytes   = content(path);
    const auto        damaged = [&](const char * name, const std::string & text) {
        write(folder / name, text);
        return folder / name;
    };
    std::string big_endian = bytes;
    std::swap(big_endian[4], big_endian[7]);
    expect_error([&] { add(""); }, { "blk.", "its path", "use_extra_bufts" });
    expect_error([&] { add(folder / "nothing.gguf"); }, { "nothing.gguf", "can't be read" });
    expect_error([&] { add(folder.path.string()); }, { folder.path.string(), "is no file" });
    expect_error([&] { add(damaged("text.gguf", "no model")); }, { "text.gguf", "is no GGUF file" });
    expect_error([&] { add(damaged("big.gguf", big_endian)); }, { "big.gguf", "big-endian" });
    expect_error([&] { add(damaged("head.gguf", bytes.substr(0, 300))); }, { "head.gguf", "truncated" });
    expect_error([&] { add(damaged("tail.gguf", bytes.substr(0, bytes.size() - 999))); }, { "tail.gguf", "truncated" });
    expect_error([&] { add(other); }, { other, "is not the file of this model", "other values" });
    expect_error([&] { add(other_type); }, { other_type, "is not the file of this model", "q8_0", "q4_0" });

    fs::copy_file(first_of_split, folder / "renamed.gguf");
    expect_error([&] { add(folder / "renamed.gguf"); }, { "renamed.gguf", "-00001-of-00003.gguf" });
    fs::copy_file(first_of_split, folder / "alone-00001-of-00003.gguf");
    expect_error([&] { add(folder / "alone-00001-of-00003.gguf"); }, { "alone-00002-of-00003.gguf", "can't be read" });
    expect(store->bytes() == 0, "nothing is kept of what was refused");
    add(path);
    expect(store->bytes() > 0, "and then all is made");
}

void not_enough_memory(const std::string & path) {
    const Loaded loaded(path, false);
    const auto   store       = ChannelStore::of(loaded.model.get());
    auto         wanted      = loaded.wanted();
    wanted.available_bytes   = 3500;
    const std::string number = std::to_string(loaded.weights.size()) + " matrices";
    expect_error([&] { store->add(wanted); },
                 { number, " MB, and 0 MB of memory can be had", "ffnskip channels " + path });
    wanted.available_bytes = k_memory_not_known;
    wanted.progress        = [](double done) { return done < 0.5; };
    expect_error<Interrupted>([&] { store->add(wanted); }, { "stopped" });
    expect(store->bytes() == 0, "nothing was taken");
    expect_error<std::logic_error>([&] { store->matrix(loaded.weights[0]); }, { loaded.weights[0]->name });
}

// Tensors of no model, to be changed at will.
struct Tensors {
    Tensors() : context(ggml_init({ 1 << 16, nullptr, true })) {
        matrix = add(GGML_TYPE_F32, "blk.0.ffn_up.weight", { 64, 130, 1 });
        cube   = add(GGML_TYPE_F32, "blk.0.ffn_up_exps.weight", { 64, 130, 3 });
        pair   = add(GGML_TYPE_F32, "blk.0.ffn_gate_exps.weight", { 64, 8, 2, 2 });
        few    = add(GGML_TYPE_Q2_K, "blk.0.ffn_down.weight", { 256, 8, 1 });
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), ggml_backend_cpu_buffer_type()));
        for (const ggml_tensor * tensor : { matrix, cube }) {
            for (int64_t i = 0; i < ggml_nelements(tensor); ++i) {
                static_cast<float *>(tensor->data)[i] = float(i % 101) - 50;
            }
        }
    }

    ggml_tensor * add(ggml_type type, const char * name, std::vector<int64_t> ne) {
        ggml_tensor * tensor = ggml_new_tensor(context.get(), type, int(ne.size()), ne.data());
        ggml_set_name(tensor, name);
        return tensor;
    }

    // An address of a model, for the store.
    const llama_model * model() const { return reinterpret_cast<const llama_model *>(this); }

    ggml_context_ptr        context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           matrix, *cube, *pair, *few;
};

void what_cant_be_stored() {
    const Tensors        tensors;
    const auto           store = ChannelStore::of(tensors.model());
    ChannelStore::Wanted wanted;
    wanted.weights = { tensors.matrix, tensors.pair };
    expect_error([&] { store->add(wanted); }, { "blk.0.ffn_gate_exps.weight", "no matrix" });
    wanted.weights = { tensors.matrix, tensors.few };
    expect_error([&] { store->add(wanted); }, { "blk.0.ffn_down.weight", "q2_K" });
}

// One matrix behind the other, in memory and in a file.
void experts(const Folder & folder) {
    const Tensors        tensors;
    const ggml_tensor *  weight = tensors.cube;
    const auto           store  = ChannelStore::of(tensors.model());
    ChannelStore::Wanted wanted;
    wanted.weights = { weight };
    store->add(wanted);
    const ChannelMatrix & made = store->matrix(weight);

    ChannelFilePart part{ weight->name, made.layout,
                          [&](int64_t first, int64_t n, uint8_t * to) {
                              std::memcpy(to, static_cast<const char *>(weight->data) + size_t(first) * weight->nb[1],
                                          size_t(n) * weight->nb[1]);
                          },
                          weight->ne[2] };
    write_channel_file(folder / "experts.channels.gguf", "tiny", { part }, 2, {});
    const ChannelFile           file(folder / "experts.channels.gguf", "tiny");
    const ChannelFile::Matrix * found = file.find(weight->name);
    expect(made.n_experts == 3 && found != nullptr && found->n_experts == 3, "as many as there are experts");
    for (int64_t expert = 0; expert < 3; ++expert) {
        const std::vector<uint8_t> expected = by_channel(weight, expert);
        const auto                 is_right = [&](const uint8_t * data) {
            return reinterpret_cast<uintptr_t>(data) % 64 == 0 &&
                   std::memcmp(data, expected.data(), expected.size()) == 0;
        };
        const std::string name = "expert " + std::to_string(expert);
        expect(is_right(made.of(expert)), name);
        expect(is_right(ChannelMatrix{ found->layout, found->data, 3 }.of(expert)), name + ", mapped");
    }
}

// A model is freed while somebody has its store, and another comes to lie in the same place.
void another_model_in_the_same_place() {
    const Tensors        tensors, elsewhere;
    const auto           store = ChannelStore::of(tensors.model());
    ChannelStore::Wanted wanted;
    wanted.weights        = { tensors.matrix };
    const auto is_current = [&](const ggml_tensor * weight) {
        const std::vector<uint8_t> expected = by_channel(weight);
        return std::memcmp(store->matrix(weight).data, expected.data(), expected.size()) == 0;
    };
    store->add(wanted);
    const uint64_t bytes = store->bytes();
    expect(is_current(tensors.matrix), "the copy of the first model");
    static_cast<float *>(tensors.matrix->data)[0] += 1;
    store->add(wanted);
    expect(is_current(tensors.matrix) && store->bytes() == bytes, "other values in the same place");
    static_cast<float *>(tensors.matrix->data)[64 * 50] += 1;  // of which no sample is taken
    wanted.fingerprint = "another";
    store->add(wanted);
    expect(is_current(tensors.matrix) && store->bytes() == bytes, "another fingerprint");
    wanted.weights = { elsewhere.matrix };
    store->add(wanted);
    expect(is_current(elsewhere.matrix) && store->bytes() == bytes, "the same name in another place");
}

// ---- a file of copies ----

// The copies of some of a file's tensors.
std::vector<ChannelFilePart> parts_of(const File & file, const std::vector<const ggml_tensor *> & weights) {
    std::vector<ChannelFilePart> parts;
    for (const ggml_tensor * weight : weights) {
        const ggml_tensor * tensor = ggml_get_tensor(file.tensors.get(), weight->name);
        parts.push_back({ weight->name, ChannelLayout(tensor->type, tensor->ne[0], tensor->ne[1]),
                          [tensor](int64_t first, int64_t n, uint8_t * to) {
                              std::memcpy(to, static_cast<const char *>(tensor->data) + size_t(first) * tensor->nb[1],
                                          size_t(n) * tensor->nb[1]);
                          } });
    }
    return parts;
}

void expect_mapped(const Loaded & loaded, const File & file, const std::string & what) {
    const auto store       = ChannelStore::of(loaded.model.get());
    auto       wanted      = loaded.wanted();
    wanted.available_bytes = 0;
    store->add(wanted);
    expect_copies(*store, loaded, file, what);
    expect(store->bytes() == 0 && store->mapped_bytes() > 0 && store->notes().empty(), what + ": takes no memory");
}

void mapped(const std::string & path, const std::string & first_of_split) {
    const File file(path);
    for (const bool repacked : { false, true }) {
        for (const std::string & named : { path, first_of_split }) {
            const Loaded        loaded(named, repacked);
            const std::string   beside = channel_file_path(named);
            std::vector<double> told;
            write_channel_file(beside, "tiny", parts_of(file, loaded.weights), 2, [&](double done) {
                told.push_back(done);
                return true;
            });
            expect(told.size() == loaded.weights.size() + 1 && std::is_sorted(told.begin(), told.end()) &&
                       told.front() == 0 && told.back() == 1,
                   "progress from 0 to 1");
            expect_mapped(loaded, file, std::string(repacked ? "repacked " : "") + named + ", mapped");
            fs::remove(beside);
        }
    }
    expect(channel_file_path(path) == path.substr(0, path.size() - 5) + ".channels.gguf" &&
               channel_file_path(first_of_split) == path.substr(0, path.size() - 10) + "split.channels.gguf",
           "the file's name: " + channel_file_path(path) + ", " + channel_file_path(first_of_split));
    expect_error<std::system_error>([&] { write_channel_file("/nowhere/x.gguf", "tiny", {}, 1, {}); }, { "/nowhere/" });
#ifdef __linux__
    const Loaded loaded(path, false);
    expect_error<std::system_error>(
        [&] { write_channel_file("/dev/full", "tiny", parts_of(file, loaded.weights), 1, {}); }, { "space" });
#endif
    expect_error<Interrupted>(
        [&] { write_channel_file(channel_file_path(path), "tiny", {}, 1, [](double) { return false; }); },
        { "stopped" });
    fs::remove(channel_file_path(path));
}

// What is not right is told, and copies are made.
void files_that_are_not_used(const std::string & path, const Folder & folder) {
    const Loaded      loaded(path, true);
    const File        file(path);
    const std::string beside = channel_file_path(path), good = folder / "good.gguf";
    write_channel_file(good, "tiny", parts_of(file, loaded.weights), 1, {});
    const std::string bytes       = content(good);
    const auto        expect_note = [&](const std::vector<std::string> & named) {
        const auto store = ChannelStore::of(loaded.model.get());
        store->add(loaded.wanted());
        expect_copies(*store, loaded, file, named[0]);
        expect(store->bytes() > 0 && store->mapped_bytes() == 0, named[0] + ": copies are made");
        const std::vector<std::string> notes = store->notes();
        expect(notes.size() == 1, "one note: " + named[0]);
        for (const std::string & text : named) {
            expect(!notes.empty() && notes[0].find(text) != std::string::npos && notes[0].find(beside) == 0,
                   "note names " + text + (notes.empty() ? "" : ": " + notes[0]));
        }
    };
    // With other keys.
    const auto write_changed = [&](const std::function<void(gguf_context *)> & change) {
        const File        changed(good);
        const std::string tensors = bytes.substr(gguf_get_data_offset(changed.keys.get()));
        change(changed.keys.get());
        std::string header(gguf_get_meta_size(changed.keys.get()), '\0');
        gguf_get_meta_data(changed.keys.get(), header.data());
        write(beside, header + tensors);
    };
    const size_t n = loaded.weights.size();

    write(beside, bytes);
    expect_mapped(loaded, file, "the file itself");
    write(beside, bytes.substr(0, bytes.size() - 5000));
    expect_note({ "is truncated" });
    write(beside, bytes.substr(0, 1000));
    expect_note({ "is truncated or damaged" });
    write(beside, "GGU");
    expect_note({ "is no GGUF file" });
    fs::remove(beside);
    fs::create_directory(beside);
    expect_note({ "is no file" });
    fs::remove(beside);
    fs::copy_file(path, beside);
    expect_note({ "has no ffnskip.channels.layout" });
    write_changed([](gguf_context * keys) { gguf_set_val_u32(keys, "ffnskip.channels.layout", 0); });
    expect_note({ "is of version 0, not 1", "write it anew" });
    write_changed([](gguf_context * keys) { gguf_set_val_str(keys, "ffnskip.channels.model", "huge"); });
    expect_note({ "is of another model, huge", "tiny" });
    write_changed([](gguf_context * keys) { gguf_remove_key(keys, "ffnskip.channels.samples"); });
    expect_note({ "ffnskip.channels.samples" });
    write_changed(
        [](gguf_context * keys) { gguf_set_arr_data(keys, "ffnskip.channels.inputs", GGUF_TYPE_UINT64, keys, 1); });
    expect_note({ "ffnskip.channels.inputs" });
    std::vector<const char *> types(n, "q8_0"), none(n, "q0");
    write_changed([&](gguf_context * keys) { gguf_set_arr_str(keys, "ffnskip.channels.types", types.data(), n); });
    expect_note({ "is damaged", "size" });
    write_changed([&](gguf_context * keys) { gguf_set_arr_str(keys, "ffnskip.channels.types", none.data(), n); });
    expect_note({ "is damaged", "no type q0" });
    const std::vector<uint64_t> huge(n, UINT64_MAX);
    write_changed([&](gguf_context * keys) {
        gguf_set_arr_data(keys, "ffnskip.channels.outputs", GGUF_TYPE_UINT64, huge.data(), n);
    });
    expect_note({ "-1" });
    for (const uint64_t n_experts : { uint64_t(0), uint64_t(2), UINT64_MAX }) {
        const std::vector<uint64_t> experts(n, n_experts);
        write_changed([&](gguf_context * keys) {
            gguf_set_arr_data(keys, "ffnskip.channels.experts", GGUF_TYPE_UINT64, experts.data(), n);
        });
        expect_note({ "is damaged", "size" });
    }

    // The model was quantised anew: the same type, other values.
    std::string       other_bytes = content(path);
    const std::string last        = loaded.weights.back()->name;
    {
        const int64_t id = gguf_find_tensor(file.keys.get(), last.c_str());
        other_bytes[gguf_get_data_offset(file.keys.get()) + gguf_get_tensor_offset(file.keys.get(), id)] ^= 1;
    }
    write(folder / "requantised.gguf", other_bytes);
    write_channel_file(beside, "tiny", parts_of(File(folder / "requantised.gguf"), loaded.weights), 1, {});
    expect_note({ "is of another model", last, "other values" });

    auto wanted            = loaded.wanted();
    wanted.available_bytes = 0;
    expect_error([&] { ChannelStore::of(loaded.model.get())->add(wanted); },
                 { "0 MB of memory can be had", beside + " is not used" });

    // A file with some of the copies.
    const std::vector<const ggml_tensor *> some(loaded.weights.begin(), loaded.weights.begin() + 2);
    write_channel_file(beside, "tiny", parts_of(file, some), 1, {});
    const auto store = ChannelStore::of(loaded.model.get());
    store->add(loaded.wanted());
    expect_copies(*store, loaded, file, "some of them mapped");
    expect(store->bytes() > 0 && store->mapped_bytes() > 0 && store->notes().size() == 1 &&
               store->notes()[0].find("no copy of " + std::to_string(n - 2) + " matrices") != std::string::npos,
           "some are mapped");
    fs::remove(beside);
}

// ---- threads, and the memory there is ----

// What one thread has added it reads while others add.
void several_threads(const std::string & path) {
    const Loaded                loaded(path, true);
    const File                  file(path);
    std::vector<std::thread>    threads;
    std::atomic<int>            n_equal{ 0 };
    std::atomic<ChannelStore *> seen{ nullptr };
    constexpr int               k_threads = 4;
    auto                        kept      = std::vector<std::shared_ptr<ChannelStore>>(k_threads);
    for (int i = 0; i < k_threads; ++i) {
        threads.emplace_back([&, i] {
            kept[size_t(i)] = ChannelStore::of(loaded.model.get());
            auto wanted     = loaded.wanted();
            // Each begins with a part of its own.
            for (size_t n = size_t(1 + i); n <= loaded.weights.size(); n += size_t(k_threads)) {
                wanted.weights.assign(loaded.weights.begin(), loaded.weights.begin() + int64_t(n));
                kept[size_t(i)]->add(wanted);
                const ggml_tensor *        weight   = wanted.weights.back();
                const std::vector<uint8_t> expected = by_channel(ggml_get_tensor(file.tensors.get(), weight->name));
                n_equal += std::memcmp(kept[size_t(i)]->matrix(weight).data, expected.data(), expected.size()) == 0;
            }
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    expect(size_t(n_equal) == loaded.weights.size(), "each thread reads what it has added");
    expect(std::all_of(kept.begin(), kept.end(), [&](auto & store) { return store == kept[0]; }),
           "all threads have one store");
    kept[0]->add(loaded.wanted());
    expect_copies(*kept[0], loaded, file, "several threads");
    const std::weak_ptr<ChannelStore> last = kept[0];
    kept.clear();
    expect(last.expired(), "the store goes with the last who has it");
}

void memory_available(const Folder & folder) {
    const auto        at   = [&](const char * name) { return folder / name; };
    const std::string root = folder.path.string() + "/system";
    expect(available_memory(root) == k_memory_not_known, "nothing is known of a system without files");

    write(at("system/proc/meminfo"), "MemTotal:  9000 kB\nMemFree: 100 kB\nMemAvailable:    5000 kB\n");
    expect(available_memory(root) == 5000 * 1024, "the machine's");

    write(at("system/proc/self/cgroup"), "0::/outer/inner\n");
    write(at("system/sys/fs/cgroup/outer/inner/memory.max"), "max\n");
    write(at("system/sys/fs/cgroup/outer/inner/memory.current"), "4000\n");
    expect(available_memory(root) == 5000 * 1024, "a group without a limit");
    write(at("system/sys/fs/cgroup/outer/memory.max"), "1000000\n");
    write(at("system/sys/fs/cgroup/outer/memory.current"), "700000\n");
    write(at("system/sys/fs/cgroup/outer/memory.stat"), "anon 400000\ninactive_file 200000\nactive_file 50000\n");
    expect(available_memory(root) == 550000, "a limit of a group above, without the cache of files");
    write(at("system/sys/fs/cgroup/outer/memory.current"), "2000000\n");
    expect(available_memory(root) == 0, "nothing where more is taken than allowed");

    write(at("system/proc/self/cgroup"), "5:cpu:/x\n4:memory,hugetlb:/not/seen/here\n0::/\n");
    write(at("system/sys/fs/cgroup/memory/memory.limit_in_bytes"), "3000000\n");
    write(at("system/sys/fs/cgroup/memory/memory.usage_in_bytes"), "1000000\n");
    write(at("system/sys/fs/cgroup/memory/memory.stat"), "inactive_file 7\ntotal_inactive_file 300000\n");
    expect(available_memory(root) == 2300000, "version 1, in a container");
#if defined(__linux__)
    expect(available_memory() > 1 << 20 && available_memory() != k_memory_not_known, "this machine's");
#endif
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: test_channel_store MODEL\n");
        return 2;
    }
    std::srand(unsigned(std::time(nullptr)));
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    const Folder      folder;
    const std::string model = folder / "model.gguf", other = folder / "other.gguf", q8 = folder / "q8.gguf";
    quantize(argv[1], model, LLAMA_FTYPE_MOSTLY_Q4_0);
    quantize(argv[1], q8, LLAMA_FTYPE_MOSTLY_Q8_0);
    const std::string first = split(model, folder);
    // Other norms, the same shapes.
    std::string bytes = content(model);
    {
        const File    file(model);
        const int64_t norm = gguf_find_tensor(file.keys.get(), "blk.0.ffn_norm.weight");
        bytes[gguf_get_data_offset(file.keys.get()) + gguf_get_tensor_offset(file.keys.get(), norm)] ^= 1;
    }
    write(other, bytes);

    memory_available(folder);
    from_memory(argv[1]);
    from_memory(model);
    from_file(model, first);
    other_files(model, other, q8, first, folder);
    not_enough_memory(model);
    what_cant_be_stored();
    experts(folder);
    another_model_in_the_same_place();
    mapped(model, first);
    files_that_are_not_used(model, folder);
    several_threads(model);
    return result();
}
