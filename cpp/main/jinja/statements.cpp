#include "parser.h"

#include <algorithm>

namespace app::jinja {
namespace {

// What ends a loop, or one round of it.
struct Break : TemplateError {
    Break() : TemplateError("'break' stands outside of a loop") {}
};
struct Continue : TemplateError {
    Continue() : TemplateError("'continue' stands outside of a loop") {}
};

void set_names(const std::vector<std::string> & names, const Value & value, Dict & scope) {
    for (size_t i = 0; i < names.size(); ++i) {
        scope[names[i]] = names.size() == 1 ? value : member(value, int64_t(i));
    }
}

// The variable `loop` in round `i` of `n`.
Value position(size_t i, size_t n) {
    return Dict{ { "index", int64_t(i + 1) },
                 { "index0", int64_t(i) },
                 { "first", i == 0 },
                 { "last", i + 1 == n },
                 { "length", int64_t(n) } };
}

}  // namespace

void write(const Nodes & nodes, Scopes & scopes, std::string & out) {
    for (const Node & node : nodes) {
        node(scopes, out);
    }
}

Nodes Parser::block(const std::vector<std::string> & ends) {
    const Nested nested(depth_);
    Nodes        nodes;
    while (next().kind != Token::finish) {
        const Token token = tokens_[at_++];
        if (token.kind == Token::plain) {
            nodes.push_back([text = token.is](Scopes &, std::string & out) { out += text; });
        } else if (token.is == "{{") {
            nodes.push_back([value = whole()](Scopes & s, std::string & out) { out += to_text(value(s)); });
        } else {
            end_ = name();
            if (std::find(ends.begin(), ends.end(), end_) != ends.end()) {
                return nodes;
            }
            nodes.push_back(statement(end_));
        }
    }
    if (!ends.empty()) {
        fail("'" + ends.back() + "' is missing");
    }
    return nodes;
}

Node Parser::statement(const std::string & word) {
    if (word == "if") {
        return conditional();
    }
    if (word == "for") {
        return loop();
    }
    if (word == "set") {
        return assignment();
    }
    if (word == "macro") {
        return macro();
    }
    skip_tag();
    return [word](Scopes &, std::string &) {
        if (word == "break") {
            throw Break();
        }
        if (word == "continue") {
            throw Continue();
        }
        if (word != "generation" && word != "endgeneration") {
            fail("the statement '" + word + "' is not known here");
        }
    };
}

Node Parser::conditional() {
    std::vector<std::pair<Expression, Nodes>> branches;
    Expression                                condition = whole();
    for (end_.clear(); end_ != "endif";) {
        const Nodes nodes = block({ "elif", "else", "endif" });
        branches.push_back({ condition, nodes });
        if (end_ == "elif") {
            condition = whole();
            continue;
        }
        skip_tag();
        condition = [](Scopes &) { return Value(true); };
    }
    return [branches](Scopes & s, std::string & out) {
        for (const auto & [holds, nodes] : branches) {
            if (is_true(holds(s))) {
                write(nodes, s, out);
                return;
            }
        }
    };
}

Node Parser::loop() {
    std::vector<std::string> names = { name() };
    while (take(",")) {
        names.push_back(name());
    }
    expect("in");
    const Expression over = binary(0);
    const Expression only = take("if") ? expression() : [](Scopes &) { return Value(true); };
    expect_end();
    const Nodes body = block({ "else", "endfor" });
    skip_tag();
    Nodes none;
    if (end_ == "else") {
        none = block({ "endfor" });
        skip_tag();
    }
    return [=](Scopes & s, std::string & out) {
        const Value of = over(s);
        if (!of.is_a<List>() && !of.is_a<Undefined>()) {
            fail("a loop runs over what is no list");
        }
        const size_t n_scopes = s.all.size();
        s.all.emplace_back();
        List chosen;
        for (const Value & value : of.is_a<List>() ? *of.as<List>() : List()) {
            set_names(names, value, s.all.back());
            if (is_true(only(s))) {
                chosen.push_back(value);
            }
        }
        for (size_t i = 0; i < chosen.size(); ++i) {
            s.all.back() = { { "loop", position(i, chosen.size()) } };
            set_names(names, chosen[i], s.all.back());
            try {
                write(body, s, out);
            } catch (const Continue &) {
                s.all.resize(n_scopes + 1);
            } catch (const Break &) {
                break;
            }
        }
        s.all.resize(n_scopes);
        if (chosen.empty()) {
            write(none, s, out);
        }
    };
}

Node Parser::macro() {
    const std::string        named = name();
    std::vector<std::string> names;
    std::vector<Expression>  defaults;
    for (expect("("); !take(")"); take(",")) {
        names.push_back(name());
        defaults.push_back(take("=") ? expression() : [](Scopes &) { return Value(); });
    }
    expect_end();
    const Nodes nodes = block({ "endmacro" });
    skip_tag();
    const Function call = [=](Scopes & scopes, const Call & args) {
        const Nested nested(scopes.depth);
        Scopes       inside{ { scopes.all[0], Dict() }, scopes.depth };
        for (size_t i = 0; i < names.size(); ++i) {
            const auto by_name      = args.named.find(names[i]);
            inside.all[1][names[i]] = i < args.list.size()          ? args.list[i]
                                      : by_name != args.named.end() ? by_name->second
                                                                    : defaults[i](inside);
        }
        std::string text;
        write(nodes, inside, text);
        return Value(text);
    };
    return [named, call](Scopes & s, std::string &) { s.all.back()[named] = call; };
}

Node Parser::assignment() {
    const std::string named = name();
    const std::string part  = take(".") ? name() : "";
    if (at_end()) {  // what stands up to endset
        skip_tag();
        const Nodes nodes = block({ "endset" });
        skip_tag();
        return [named, nodes](Scopes & s, std::string &) {
            std::string text;
            write(nodes, s, text);
            s.all.back()[named] = text;
        };
    }
    expect("=");
    return [=, value = whole()](Scopes & s, std::string &) {
        if (part.empty()) {
            s.all.back()[named] = value(s);
            return;
        }
        const Value of = s.get(named);
        if (!of.is_a<Dict>()) {
            fail("'" + named + "' is no namespace");
        }
        (*of.as<Dict>())[part] = value(s);
    };
}

}  // namespace app::jinja
