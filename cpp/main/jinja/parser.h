// Reads the tokens of a template into what can be evaluated.
#pragma once

#include "lexer.h"
#include "values.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace app::jinja {

// Counts how deep a template nests: the stack has an end.
struct Nested {
    explicit Nested(int & depth) : depth(depth) {
        if (++depth > 100) {
            fail("it nests too deep");
        }
    }
    ~Nested() { --depth; }
    Nested(const Nested &)             = delete;
    Nested & operator=(const Nested &) = delete;

    int & depth;
};

// The variables, scope by scope.
struct Scopes {
    std::vector<Dict> all   = std::vector<Dict>(1);
    int               depth = 0;  // of macros

    Value get(const std::string & name) const {
        for (auto scope = all.rbegin(); scope != all.rend(); ++scope) {
            if (const auto at = scope->find(name); at != scope->end()) {
                return at->second;
            }
        }
        return {};
    }
};

using Expression = std::function<Value(Scopes &)>;
using Node       = std::function<void(Scopes &, std::string & out)>;
using Nodes      = std::vector<Node>;

void write(const Nodes & nodes, Scopes & scopes, std::string & out);

class Parser {
public:
    explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

    // Up to a statement that begins with one of `ends`, which is then in end_; without any, to the end of the template.
    Nodes block(const std::vector<std::string> & ends);

private:
    // The next token, where it is this sign or name; must be; must be some name.
    const Token & next() const { return tokens_[at_]; }
    bool          take(const std::string & what);
    void          expect(const std::string & what);
    std::string   name();
    bool          at_end() const { return next().kind == Token::end; }
    void          expect_end();  // of the tag
    void          skip_tag();

    // Statements, from behind their name on.
    Node statement(const std::string & word);
    Node conditional();
    Node loop();
    Node macro();
    Node assignment();

    // An expression and the end of the tag. One that is not understood fails where it is evaluated, which most
    // conversations never come to.
    Expression whole();
    Expression expression();
    Expression binary(size_t level);  // operators that bind as strongly as `level` says, or stronger
    Expression unary();
    Expression attribute(const Expression & of);
    Expression subscript(const Expression & of);
    Expression tested(const Expression & of, bool wanted);
    Expression list(const Expression & first, const std::string & end);
    Expression dict();
    Expression primary();

    std::function<Call(Scopes &)> optional_arguments();

    std::vector<Token> tokens_;
    size_t             at_    = 0;
    int                depth_ = 0;
    std::string        end_;
};

}  // namespace app::jinja
