// The expressions of a template, read into what can be evaluated.
#pragma once

#include "jinja_values.h"

#include <functional>
#include <map>
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
using Node       = std::function<void(Scopes &, std::string &)>;
using Nodes      = std::vector<Node>;

// A piece of the template with a name and parameters.
struct Macro {
    std::vector<std::string> names;
    std::vector<Expression>  defaults;  // one for each
    Nodes                    nodes;
};

void write(const Nodes & nodes, Scopes & scopes, std::string & out);

// What a tag consists of.
struct Token {
    enum Kind { name, number, text, sign, end } kind;
    std::string is;
};

// What a call is given: in order, and by name.
struct CallArguments {
    std::vector<Expression>           list;
    std::map<std::string, Expression> named;

    List values(Scopes & scopes) const {
        List all;
        for (const Expression & one : list) {
            all.push_back(one(scopes));
        }
        return all;
    }
};

// Reads the tokens of one tag. Each function reads what binds as strongly as its name says, or stronger.
class ExpressionReader {
public:
    explicit ExpressionReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

    const Token & next() const { return tokens_[at_]; }
    bool          at_end() const { return next().kind == Token::end; }

    // The next token, where it is this sign or name; must be; must be some name.
    bool        take(const std::string & what);
    void        expect(const std::string & what);
    std::string name();

    Expression expression();
    Expression disjunction();

private:
    Expression conjunction();
    Expression negation();
    Expression comparison();
    // Sums; within them texts joined by ~; within them products.
    Expression operation(const std::vector<std::string> & signs, int depth);
    Expression unary();
    Expression attribute(const Expression & of);
    Expression subscript(const Expression & of);
    Expression list(const Expression & first, const std::string & end);
    Expression primary();

    CallArguments optional_arguments();

    std::vector<Token> tokens_;  // the last is the end
    size_t             at_    = 0;
    int                depth_ = 0;
};

}  // namespace app::jinja
