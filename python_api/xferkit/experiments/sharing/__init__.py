"""The study of sharing: which parameters of a masked language model do its languages share?"""
