"""A model hub on this machine: what ``huggingface_hub`` speaks over HTTP, kept in real git repositories.

::

    from tests.support.hub.faults import Answer, CutUpload
    from tests.support.hub.server import Hub

    with Hub(folder) as hub:                      # loopback only, on free ports
        hub.url                                   # HF_ENDPOINT, or HfApi(endpoint=hub.url)
        hub.token                                 # HF_TOKEN of the user "poro", who may write poro/*
        hub.read_only_token, hub.stranger_token   # the same user's token without write access; another user's
        hub.fail(Answer(503), route="commit")     # the next commit is answered 503
        hub.fail(CutUpload(), at=17)              # the 17th request breaks off in the middle of its body
        hub.forget()                              # orders that no request has met are withdrawn; counting starts again
        hub.log                                   # what was asked and answered, in order of arrival
        hub.repository("poro/tiny")               # the bare git repository of a model, if there is one

``Hub(folder, *, part_bytes=None, xet=True, port=0)``: with ``part_bytes``, larger files go up in parts of that
size (LFS multipart); ``xet=False`` is a hub without Xet storage. ``HF_ENDPOINT``, ``HF_HOME`` and
``HF_HUB_DISABLE_XET`` are read when huggingface_hub is imported: set them for a subprocess, or pass ``endpoint=`` and
``token=``.

Every model is a bare git repository, every branch a git branch, every large file a git-lfs pointer whose object lies
beside it, so that what was published can be judged by plain ``git clone`` and ``git lfs fsck``, which know nothing of
this code: ``witness.py``. git keeps a log of each branch, so every value that ``main`` ever had can be judged too.

It is a stand-in, written from what clients send. It knows models only; no datasets, spaces, pull requests, quotas or
rate limits of its own. What the Hub of huggingface.co does beyond that is not tested by it.
"""
