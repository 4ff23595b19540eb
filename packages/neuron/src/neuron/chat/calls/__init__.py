"""Tool calls as models write them, one module per shape of syntax over one shared machine.

Named after what is on the wire: objects in JSON (`json_calls`), a name and then its arguments in
JSON (`named_calls`), a name and then keys with plain values (`keyed_calls`), and calls addressed by
a message's header (`addressed_calls`). `neuron.chat.tool_calls` chooses. `writing` is the other way
round: what an answer may be that has to be, or may hold, a call.
"""
