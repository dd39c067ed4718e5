// Property: rows are found in the order in which libllama evaluates them. Expected orders are written out by hand, after
// the rules in libllama's llama_batch_allocr.
#include "expect.h"
#include "ubatches.h"

#include <vector>

using namespace ffnskip;

namespace {

using Rows = std::vector<int32_t>;

// A batch whose row i is token i of the sequences seqs[i].
class Batch {
public:
    explicit Batch(std::vector<std::vector<llama_seq_id>> seqs) : seqs_(std::move(seqs)) {
        for (size_t i = 0; i < seqs_.size(); ++i) {
            tokens_.push_back(int32_t(i));
            counts_.push_back(int32_t(seqs_[i].size()));
            pointers_.push_back(seqs_[i].data());
        }
    }

    llama_batch get() {
        return { int32_t(seqs_.size()), tokens_.data(), nullptr, nullptr, counts_.data(), pointers_.data(), nullptr };
    }

private:
    std::vector<std::vector<llama_seq_id>> seqs_;
    std::vector<int32_t>                   tokens_, counts_;
    std::vector<llama_seq_id *>            pointers_;
};

// Token ids are row numbers, so an ubatch of these rows holds just these tokens.
bool follows(Ubatches & ubatches, const llama_batch & batch, const std::vector<Rows> & expected) {
    ubatches.begin(batch);
    for (const Rows & rows : expected) {
        const int32_t * found = ubatches.next(rows.data(), int32_t(rows.size()));
        if (found == nullptr || !std::equal(rows.begin(), rows.end(), found)) {
            return false;
        }
    }
    const int32_t any = 0;
    return ubatches.next(&any, 1) == nullptr;  // and no more
}

bool follows(Split split, int32_t n_ubatch, Batch batch, const std::vector<Rows> & expected) {
    Ubatches ubatches;
    ubatches.configure(split, n_ubatch);
    const llama_batch rows = batch.get();
    return follows(ubatches, rows, expected) && follows(ubatches, rows, expected);
}

}  // namespace

int main() {
    const Batch one({ { 0 }, { 0 }, { 0 }, { 0 }, { 0 } });
    const Batch mixed({ { 0 }, { 0 }, { 0 }, { 1 }, { 2 }, { 2 } });  // a prompt, a generated token, two of a draft
    const Batch gaps({ { 0 }, { 2 }, { 3 }, { 1 } });
    const Batch shared({ { 0, 1 }, { 0, 1 }, { 0 }, { 1 } });

    for (const Split split : { Split::simple, Split::equal, Split::equal_sequential, Split::by_sequence }) {
        expect(follows(split, 2, one, { { 0, 1 }, { 2, 3 }, { 4 } }), "one sequence is cut in order");
    }
    expect(follows(Split::simple, 4, mixed, { { 0, 1, 2, 3 }, { 4, 5 } }), "simple");
    expect(follows(Split::equal, 512, mixed, { { 0, 3, 4 }, { 1, 5 }, { 2 } }), "equal: as many rows of each");
    expect(follows(Split::equal_sequential, 512, mixed, { { 0, 3, 4 }, { 1, 2 }, { 5 } }),
           "2 does not follow 0, once 1 is done");
    expect(follows(Split::equal, 2, mixed, { { 0, 3, 4 }, { 1, 5 }, { 2 } }), "equal: one row of each at least");
    expect(follows(Split::equal_sequential, 512, gaps, { { 0, 3 }, { 1, 2 } }),
           "ids that follow one another share an ubatch");
    expect(follows(Split::equal, 512, gaps, { { 0, 1, 2, 3 } }), "equal takes them all");
    expect(follows(Split::equal, 512, shared, { { 0, 1 }, { 2, 3 } }), "shared rows come first");
    expect(follows(Split::by_sequence, 512, shared, { { 0, 1, 2 }, { 3 } }), "by sequence: part of the one before");

    // A context whose usual way had no room falls back to another one, for this batch.
    expect(follows(Split::simple, 512, mixed, { { 0, 3, 4 }, { 1, 5 }, { 2 } }), "falls back");
    expect(!follows(Split::simple, 512, mixed, { { 5, 4, 3, 2, 1, 0 } }), "an unknown way is not taken for another");
    return result();
}
