"""Several backends behind one address: who sends a conversation where its prompt is cached?"""
